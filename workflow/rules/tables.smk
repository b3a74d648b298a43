# Tables are views over cells; they compute nothing.
rule table_of_paper:
    input:
        cells_of_table,
    output:
        "results/{paper}/{stem}.csv",
        "results/{paper}/{stem}.md",
    log:
        "results/logs/tables/{paper}-{stem}.log",
    benchmark:
        "results/benchmarks/tables/{paper}-{stem}.tsv"
    conda:
        "../envs/pipeline.yaml"
    params:
        number=lambda wildcards: STEMS.get((wildcards.paper, wildcards.stem)),
        config=shlex.quote(str(CONFIG)),
        overlay=shlex.quote(OVERLAY_JSON),
    shell:
        "python -m pipeline table {params.number} --paper {wildcards.paper} --config {params.config}"
        " --overlay {params.overlay} > {log} 2>&1"


rule table_of_papers:
    input:
        tables_of_number,
    output:
        "results/{stem}.csv",
        "results/{stem}.md",
    log:
        "results/logs/tables/{stem}.log",
    benchmark:
        "results/benchmarks/tables/{stem}.tsv"
    conda:
        "../envs/pipeline.yaml"
    params:
        number=lambda wildcards: next(
            (n for (_, stem), n in STEMS.items() if stem == wildcards.stem), None
        ),
        config=shlex.quote(str(CONFIG)),
        overlay=shlex.quote(OVERLAY_JSON),
    shell:
        "python -m pipeline table {params.number} --config {params.config} --overlay {params.overlay} > {log} 2>&1"
