# From publishers' files, or from nothing, to decoded frames.


rule generate_videos:
    output:
        "results/data/{dataset}/generated/annotations.csv",
        "results/data/{dataset}/generated/index.csv",
        "results/data/{dataset}/generated/texts.json",
    log:
        "results/logs/generate_videos/{dataset}.log",
    benchmark:
        "results/benchmarks/generate_videos/{dataset}.tsv"
    conda:
        "../envs/pipeline.yaml"
    threads: cores("generate", 2)
    resources:
        **needs("generate"),
    shell:
        "python -m pipeline videos {wildcards.dataset} --workers {threads} > {log} 2>&1"


rule extract_poses:
    output:
        "results/data/{dataset}/poses/poses.csv",
    log:
        "results/logs/extract_poses/{dataset}.log",
    benchmark:
        "results/benchmarks/extract_poses/{dataset}.tsv"
    conda:
        "../envs/pipeline.yaml"
    threads: cores("poses", 2)
    resources:
        **needs("poses"),
    shell:
        "python -m pipeline poses {wildcards.dataset} --workers {threads} {resources.over} > {log} 2>&1"


rule split_classes:
    input:
        videos_of,
    output:
        "results/data/{dataset}/index.csv",
    log:
        "results/logs/split_classes/{dataset}.log",
    benchmark:
        "results/benchmarks/split_classes/{dataset}.tsv"
    conda:
        "../envs/pipeline.yaml"
    threads: 2
    resources:
        **SITE,
    params:
        options=lambda wildcards: json.dumps(
            {
                key: value
                for key, value in PLAN.datasets[wildcards.dataset].options.items()
                if key != "min_coverage"  # of the frames step alone
            },
            sort_keys=True,
        ),
    shell:
        "python -m pipeline splits {wildcards.dataset} --workers {threads} > {log} 2>&1"


rule describe_classes:
    input:
        "results/data/{dataset}/index.csv",
        texts_of,
        corpora_of,
    output:
        "results/data/{dataset}/texts.json",
    log:
        "results/logs/describe_classes/{dataset}.log",
    benchmark:
        "results/benchmarks/describe_classes/{dataset}.tsv"
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
        "results/data/{dataset}/index.csv",
    output:
        "results/data/{dataset}/{store}/manifest.json",
    log:
        "results/logs/extract_frames/{dataset}-{store}.log",
    benchmark:
        "results/benchmarks/extract_frames/{dataset}-{store}.tsv"
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
