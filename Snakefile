# Table of contents. What is measured stands in config/tables/, how in src/pipeline/, where in the profiles.
from snakemake.utils import min_version

min_version("9.0")


# config/config.yaml and its scale are read by the plan; `config` holds what --config and --configfile lay over them.
include: "workflow/rules/common.smk"
include: "workflow/rules/datasets.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/tables.smk"


rule all_tables:
    default_target: True
    input:
        combined_tables(),
        paper_tables(),
        [figure for paper in PLAN.papers for figure in figure_files(paper)],
    localrule: True


# A target of each paper: its tables, its figures and the numbers behind them.
for paper in PLAN.papers:

    rule:
        name:
            f"{paper}_tables"
        input:
            paper_tables(paper),
            figure_files(paper),
            cell_files(paper),
        localrule: True


onstart:
    PLAN.write_specs("results/specs")
    drop_default_rate_limit(workflow.scheduler)


onsuccess:
    stop_cluster()
    say_totals()


onerror:
    stop_cluster()
