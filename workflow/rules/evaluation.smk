rule inspect_run:
    # What figures show of a trained model's inside, from a few fixed clips.
    input:
        lambda wildcards: f"results/runs/{wildcards.run}/train.json",
        lambda wildcards: dataset_files(known(PLAN.runs, wildcards.run, "run")),
    output:
        "results/inspect/{run}.npz",
    log:
        "results/logs/inspect/{run}.log",
    benchmark:
        "results/benchmarks/inspect/{run}.tsv"
    conda:
        "../envs/pipeline.yaml"
    resources:
        **needs("evaluate"),
    params:
        shown=lambda wildcards: json.dumps(PLAN.shown.get(wildcards.run, {})),
    shell:
        "python -m pipeline inspect {wildcards.run} > {log} 2>&1"


# One job measures every cell of a run: each video is encoded once.
for run_id, cells in PLAN.cells_of.items():
    if not cells:  # read by another run alone
        continue

    rule:
        name:
            f"evaluate_{run_id.replace('-', '_')}"
        input:
            f"results/runs/{run_id}/train.json",
            dataset_files(PLAN.runs[run_id]),
        output:
            [f"results/cells/{cell}.json" for cell in cells],
        log:
            f"results/logs/evaluate/{run_id}.log",
        benchmark:
            f"results/benchmarks/evaluate/{run_id}.tsv"
        localrule: WAITING
        conda:
            "../envs/pipeline.yaml"
        resources:
            **needs("evaluate"),
        params:
            run=run_id,
            cluster=shlex.quote(CLUSTER_JSON),
        shell:
            "python -m pipeline evaluate {params.run} --settings {params.cluster} > {log} 2>&1"
