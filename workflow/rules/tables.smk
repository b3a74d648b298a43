# Tables, figures and the report are views over cells; they compute nothing.
rule table_of_paper:
    input:
        cells_of_table,
    output:
        multiext("results/{paper}/{stem}", ".csv", ".md", ".tex", ".wide.csv"),
        report(
            "results/{paper}/{stem}.html",
            caption="../report/table.rst",
            category="{paper}",
            subcategory="tables",
            labels={"result": "{stem}"},
        ),
    log:
        log_of("table"),
    benchmark:
        benchmark_of("table")
    wildcard_constraints:
        stem=rf"(?!(?:{DRAWN})\.)(table|fig)[0-9A-Za-z]+",
    conda:
        "../envs/pipeline.yaml"
    params:
        number=lambda wildcards: STEMS.get((wildcards.paper, wildcards.stem)),
        about=about,
        config=shlex.quote(str(CONFIG)),
        overlay=shlex.quote(OVERLAY_JSON),
    shell:
        "python -m pipeline table {params.number} --paper {wildcards.paper} --config {params.config}"
        " --overlay {params.overlay} > {log} 2>&1"


rule figure_of_paper:
    # One job draws it and writes its numbers.
    input:
        cells_of_table,
        inspections_of_figure,
    output:
        multiext(
            "results/{paper}/{stem}",
            ".png",
            ".pdf",
            ".csv",
            ".md",
            ".tex",
            ".html",
            ".wide.csv",
        ),
        report(
            "results/{paper}/{stem}.svg",
            caption="../report/figure.rst",
            category="{paper}",
            subcategory="figures",
            labels={"result": "{stem}"},
        ),
    log:
        log_of("figure"),
    benchmark:
        benchmark_of("figure")
    wildcard_constraints:
        stem=DRAWN or "none",
    conda:
        "../envs/pipeline.yaml"
    params:
        about=about,
        config=shlex.quote(str(CONFIG)),
        overlay=shlex.quote(OVERLAY_JSON),
    shell:
        "python -m pipeline figure {wildcards.stem} --paper {wildcards.paper} --config {params.config}"
        " --overlay {params.overlay} > {log} 2>&1"


rule curves_of_paper:
    input:
        trainings_of_paper,
    output:
        multiext("results/{paper}/training", ".png", ".pdf"),
        report(
            "results/{paper}/training.svg",
            caption="../report/training.rst",
            category="{paper}",
            subcategory="figures",
            labels={"result": "training"},
        ),
    log:
        log_of("figure", paper="{paper}", stem="training"),
    benchmark:
        benchmark_of("figure", paper="{paper}", stem="training")
    conda:
        "../envs/pipeline.yaml"
    params:
        config=shlex.quote(str(CONFIG)),
        overlay=shlex.quote(OVERLAY_JSON),
    shell:
        "python -m pipeline curves --paper {wildcards.paper} --config {params.config}"
        " --overlay {params.overlay} > {log} 2>&1"


rule report:
    input:
        paper_tables(),
        [figure for paper in PLAN.papers for figure in figure_files(paper)],
        cell_files(),
    output:
        report(
            "results/report.html",
            caption="../report/report.rst",
            category="all papers",
            labels={"result": "every table and figure"},
        ),
    log:
        "results/logs/report.log",
    benchmark:
        "results/benchmarks/report.tsv"
    conda:
        "../envs/pipeline.yaml"
    params:
        config=shlex.quote(str(CONFIG)),
        overlay=shlex.quote(OVERLAY_JSON),
    shell:
        "python -m pipeline report --config {params.config} --overlay {params.overlay} > {log} 2>&1"


rule table_of_papers:
    input:
        tables_of_number,
    output:
        "results/{stem}.md",
        report(
            "results/{stem}.csv",
            caption="../report/combined.rst",
            category="all papers",
            labels={"result": "{stem}"},
        ),
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
