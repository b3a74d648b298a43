# Weights: a tiny CLIP at demo scale, and one training for each run of the plan.


rule pretrain_backbone:
    input:
        pretraining_inputs,
    output:
        made("pretrain"),
    log:
        log_of("pretrain"),
    benchmark:
        benchmark_of("pretrain")
    conda:
        "../envs/pipeline.yaml"
    threads: cores("pretrain", 1)
    resources:
        **needs("pretrain"),
    shell:
        "python -m pipeline pretrain {wildcards.backbone} --threads {threads} > {log} 2>&1"


rule train:
    input:
        lambda wildcards: training_inputs(wildcards.run),
    output:
        made("train"),
    log:
        log_of("train"),
    benchmark:
        benchmark_of("train")
    wildcard_constraints:
        run="|".join(run for run in PLAN.runs if run not in PLAN.swept) or "none",
    localrule: WAITING
    conda:
        "../envs/pipeline.yaml"
    threads: CLIENT_CORES
    resources:
        **waits("train"),
    shell:
        "python -m pipeline train {wildcards.run} --settings {resources.placed} > {log} 2>&1"


# A swept axis is one Ray Tune experiment on each data set; its runs are the trials.
for sweep in PLAN.sweeps.values():
    if trials := [run for run in sweep.runs if PLAN.swept.get(run) == sweep.name]:

        rule:
            name:
                f"sweep_{sweep.name.replace('-', '_')}"
            input:
                sorted({path for run in trials for path in training_inputs(run)}),
                # Trained by `train`, for other tables need them too: done before, so that no trial repeats them.
                [
                    path
                    for run in sweep.runs
                    if run not in trials
                    for path in made("train", run=run)
                ],
            output:
                made("sweep", sweep=sweep.name, runs=trials),
            log:
                log_of("sweep", sweep=sweep.name),
            benchmark:
                benchmark_of("sweep", sweep=sweep.name)
            localrule: WAITING
            conda:
                "../envs/pipeline.yaml"
            threads: CLIENT_CORES
            resources:
                **waits("sweep"),
            params:
                sweep=sweep.name,
            shell:
                "python -m pipeline sweep {params.sweep} --settings {resources.placed} > {log} 2>&1"
