# Table of contents. What is measured stands in config/tables/, how in src/pipeline/, where in the profiles.
from snakemake.utils import min_version

min_version("9.0")


# config/config.yaml and its scale are read by the plan; `config` holds what --config and --configfile lay over them.
include: "workflow/rules/common.smk"
include: "workflow/rules/datasets.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/tables.smk"


localrules:
    all_tables,
    lga_tables,
    task_adapter_tables,
    crossglg_tables,
    sefar_tables,


rule all_tables:
    default_target: True
    input:
        combined_tables(),
        [paper_table(paper, number) for paper, number in PLAN.tables()],
        [figure for paper in PLAN.papers for figure in figure_files(paper)],


rule lga_tables:
    input:
        [paper_table(paper, number) for paper, number in PLAN.tables("lga")],
        figure_files("lga"),
        cell_files("lga"),


rule task_adapter_tables:
    input:
        [paper_table(paper, number) for paper, number in PLAN.tables("task_adapter")],
        figure_files("task_adapter"),
        cell_files("task_adapter"),


rule crossglg_tables:
    input:
        [paper_table(paper, number) for paper, number in PLAN.tables("crossglg")],
        figure_files("crossglg"),
        cell_files("crossglg"),


rule sefar_tables:
    input:
        [paper_table(paper, number) for paper, number in PLAN.tables("sefar")],
        figure_files("sefar"),
        cell_files("sefar"),


onstart:
    PLAN.write_specs("results/specs")
    drop_default_rate_limit(workflow.scheduler)


onsuccess:
    stop_cluster()
    say_totals()


onerror:
    stop_cluster()
    say_where_nothing_can_be_written()
