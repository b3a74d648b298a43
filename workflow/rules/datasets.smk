# From publishers' files, or from nothing, to decoded frames. These come before trainings that could run too: otherwise a
# step that asks for all cores waits for the last training of what is ready, and the next trainings for it.


rule generate_videos:
    output:
        made("videos"),
    log:
        log_of("videos"),
    benchmark:
        benchmark_of("videos")
    priority: 1
    conda:
        "../envs/pipeline.yaml"
    threads: cores("generate", 2)
    resources:
        **needs("generate"),
    shell:
        "python -m pipeline videos {wildcards.dataset} --workers {threads} > {log} 2>&1"


rule extract_poses:
    output:
        made("poses"),
    log:
        log_of("poses"),
    benchmark:
        benchmark_of("poses")
    priority: 1
    conda:
        "../envs/pipeline.yaml"
    threads: cores("poses", 2)
    resources:
        **needs("poses"),
    shell:
        "python -m pipeline poses {wildcards.dataset} --workers {threads} {resources.over} > {log} 2>&1"


rule split_classes:
    input:
        clips_of,
    output:
        made("splits"),
    log:
        log_of("splits"),
    benchmark:
        benchmark_of("splits")
    priority: 1
    conda:
        "../envs/pipeline.yaml"
    threads: cores("splits", 2)
    resources:
        **needs("splits"),
    params:
        options=options_of,
    shell:
        "python -m pipeline splits {wildcards.dataset} --workers {threads} > {log} 2>&1"


rule describe_classes:
    input:
        made("splits"),
        texts_of,
        corpora_of,
    output:
        made("text"),
    log:
        log_of("text"),
    benchmark:
        benchmark_of("text")
    priority: 1
    conda:
        "../envs/pipeline.yaml"
    resources:
        **SITE,
    params:
        asked=asked_of,
    shell:
        "python -m pipeline text {wildcards.dataset} > {log} 2>&1"


rule extract_frames:
    input:
        made("splits"),
    output:
        made("frames"),
    log:
        log_of("frames"),
    benchmark:
        benchmark_of("frames")
    priority: 1
    conda:
        "../envs/pipeline.yaml"
    threads: cores("frames", 2)
    resources:
        **needs("frames"),
    shell:
        "python -m pipeline frames {wildcards.dataset} {wildcards.store} --workers {threads} {resources.over} > {log} 2>&1"


rule download:
    # Asked for by name: `snakemake results/download/hmdb51.json`. Nothing else depends on it.
    output:
        "results/download/{name}.json",
    log:
        "results/logs/download/{name}.log",
    benchmark:
        "results/benchmarks/download/{name}.tsv"
    conda:
        "../envs/pipeline.yaml"
    threads: 2
    resources:
        **SITE,
        overlay=shlex.quote(json.dumps(config, sort_keys=True)),
    params:
        config=shlex.quote(str(CONFIG)),
    shell:
        "python -m pipeline download {wildcards.name} --record {output} --config {params.config}"
        " --overlay {resources.overlay} > {log} 2>&1"
