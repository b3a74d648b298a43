rule inspect_run:
    # What figures show of a trained model's inside, from a few fixed clips.
    input:
        made("train"),
        lambda wildcards: dataset_files(known(PLAN.runs, wildcards.run, "run")),
    output:
        made("inspect"),
    log:
        log_of("inspect"),
    benchmark:
        benchmark_of("inspect")
    conda:
        "../envs/pipeline.yaml"
    resources:
        **needs("evaluate"),
    params:
        shown=lambda wildcards: json.dumps(PLAN.shown.get(wildcards.run, {})),
    shell:
        "python -m pipeline inspect {wildcards.run} > {log} 2>&1"


# One job measures the cells of a run whose scores the same tables need: a target scores nothing of another one. A cell that
# is there stays (`update`), and jobs of one run wait for each other, so that each video is encoded once.
for name, (run_id, cells) in PLAN.measured_together.items():

    rule:
        name:
            f"evaluate_{re.sub('[^a-z0-9_]', '_', name)}"
        input:
            made("train", run=run_id),
            dataset_files(PLAN.runs[run_id]),
        output:
            [update(path) for path in made("evaluate", job=name, cells=cells)],
        log:
            log_of("evaluate", job=name),
        benchmark:
            benchmark_of("evaluate", job=name)
        localrule: WAITING
        conda:
            "../envs/pipeline.yaml"
        threads: CLIENT_CORES
        resources:
            **waits("evaluate"),
        params:
            asked=run_id if name == run_id else " ".join([run_id, *cells]),
        shell:
            "python -m pipeline evaluate {params.asked} --settings {resources.placed} > {log} 2>&1"
