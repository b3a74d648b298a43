"""What the workflow says before it does anything."""

from __future__ import annotations

import re
import resource
import subprocess
import sys

import pytest
import yaml

from pipeline.plan import Plan


def _jobs(out: str) -> dict[str, int]:
    """Rule -> number of jobs, of the summary of a dry run."""
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", out, re.M)}


def _cpu_seconds() -> float:
    """Of the processes that this one has started, and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_every_target_is_planned_quickly(workflow, repo):
    before = _cpu_seconds()
    status, out = workflow.run("-n", "all_tables")
    assert status == 0, out[-3000:]
    assert _cpu_seconds() - before < 15  # 5 here; what else the machine does is of no account
    settings = yaml.safe_load((workflow.folder / "tiny.yaml").read_text())
    plan, jobs = Plan.read(repo / "config", settings), _jobs(out)
    # every run once: by the rule of its own, or by the sweep that it is a trial of
    assert jobs["train"] == len(plan.runs) - len(plan.swept)
    sweeps = {f"sweep_{name.replace('-', '_')}" for name in plan.swept.values()}
    assert {name for name in jobs if name.startswith("sweep_")} == sweeps
    assert {name for name in sweeps if "lga" in name or "task_adapter" in name} == {
        f"sweep_{table}_{dataset.key.replace('-', '_')}"
        for table in ("lga_table6", "task_adapter_fig8a", "task_adapter_fig8b")
        for dataset in plan.datasets.values()
        if dataset.name in ("synthetic_scene", "synthetic_temporal")
    }
    assert sum(name.startswith("evaluate_") for name in jobs) == len(plan.measured_together)


def test_a_target_of_one_paper_needs_nothing_of_another(workflow):
    status, out = workflow.run("-n", "task_adapter_tables")
    assert status == 0, out[-3000:]
    jobs = _jobs(out)
    assert not any("lga_" in name for name in jobs if name.startswith(("evaluate_", "sweep_")))
    assert jobs["pretrain_backbone"] == 4  # a CLIP and a ResNet for either generated set
    assert jobs["generate_videos"] == 2 and jobs["extract_frames"] == 2
    assert jobs["table_of_paper"] == 9 and jobs["figure_of_paper"] == 5  # a figure's job writes its numbers
    assert jobs["inspect_run"] == 3


def test_a_table_of_ablations_needs_its_own_trainings_only(workflow):
    status, out = workflow.run("-n", "results/task_adapter/table4.csv")
    assert status == 0, out[-3000:]
    jobs = _jobs(out)
    assert jobs["train"] == 7 and sum(name.startswith("evaluate_") for name in jobs) == 7
    assert jobs["pretrain_backbone"] == jobs["generate_videos"] == 1
    # Table 5 stands on two of the same trainings
    status, out = workflow.run("-n", "results/task_adapter/table4.csv", "results/task_adapter/table5.csv")
    assert status == 0 and _jobs(out)["train"] == 7


def test_targets_exist(workflow):
    """In one call, for it takes seconds to read the plan: Snakemake refuses them all where it cannot make one."""
    targets = [
        "results/table4.csv", "results/lga/table4.csv", "lga_tables", "results/fig3.csv", "task_adapter_tables",
        "crossglg_tables", "sefar_tables", "results/sefar/table1a.csv",
        "results/task_adapter/table4.csv", "results/fig10.csv", "results/task_adapter/fig8a.md",
        "results/lga/table4.tex", "results/lga/fig3.svg", "results/task_adapter/fig9.png", "results/lga/training.pdf",
        "results/crossglg/fig6.svg", "results/lga/figphases.png", "results/lga/figalpha.svg",
        "report", "mine_tables", "results/mine/table1.md",
    ]  # fmt: skip
    cell = {"method": "otam", "dataset": "hmdb51"}  # a paper is its sheet
    sheet = {"title": "one", "columns": [{"name": "c", "experiment": cell}], "rows": [{"name": "r", "experiment": {}}]}
    paper = workflow.folder / "paper.yaml"
    paper.write_text(yaml.safe_dump({"tables": {"mine": {"title": "mine", "tables": {"1": sheet}}}}))
    status, out = workflow.run(*targets, "--configfile", "tiny.yaml", paper.name, "-n")
    assert status == 0, out[-3000:]
    planned, jobs = set(re.findall(r"results/[^\s,]+", out)), _jobs(out)
    for target in targets:
        assert target in planned or target in jobs, target


def test_paper_scale_is_planned_too(workflow):
    status, out = workflow.run("-n", "all_tables", "--config", "scale=paper")
    assert status == 0, out[-3000:]
    assert "pretrain_backbone" not in out and "generate_videos" not in out


def test_frames_over_several_nodes(workflow):
    target = ["--", "results/lga/table2.csv"]
    status, out = workflow.run("-n", "-p", "--config", "resources={frames: {nodes: 4, threads: 2}}", *target)
    assert status == 0, out[-3000:]
    assert len(re.findall(r"pipeline frames \S+ \S+ --workers 2 --nodes 4 --interface '' >", out)) == 1
    assert len(re.findall(r"nodes=4, tasks=4, tasks_per_gpu=0, mpi=srun", out)) == 1
    status, out = workflow.run("-n", "-p", *target)
    assert status == 0 and re.search(r"pipeline frames \S+ \S+ --workers 2 +>", out) and "nodes=" not in out


def test_without_a_flag(repo):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "results/table4.csv"], cwd=repo, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results/table44.csv"], "unknown table 'table44'; did you mean 'table4'?"),
        (["results/lgb/table4.csv"], "unknown paper 'lgb'; did you mean 'lga'?"),
        (["--config", "scale=dmo"], "unknown scale 'dmo'"),
        (["--config", "substitute={hmdb51: hmdb52}"], "unknown dataset 'hmdb52'"),
        (["--config", "train={lr: 1}", "scael=demo"], "unknown key 'scael'"),
        (["--config", "substitute_backbone={clip_vit_b16: clip_nan}"], "unknown backbone 'clip_nan'"),
        (
            ["--config", "tables={mine: {title: t, tables: {'1': {title: t, columns: [{name: c}], rows: [{name: r, "
             "experiment: {method: lgaa, dataset: hmdb51}}]}}}}"],
            "unknown method 'lgaa'",
        ),
    ],
)  # fmt: skip
def test_a_wrong_name_is_one_line_with_the_nearest(workflow, arguments, message):
    status, out = workflow.run("-n", *arguments)
    assert status != 0
    assert message in out, out[-2000:]
    assert "Traceback (most recent call last)" not in out


def test_every_rule_has_log_benchmark_and_environment(repo):
    for path in (repo / "workflow" / "rules").glob("*.smk"):
        for rule in re.split(r"(?m)^ *rule[ \w]*:", path.read_text())[1:]:
            for directive in ("log:", "benchmark:", "conda:"):
                assert directive in rule, (path.name, directive, rule[:80])


def test_every_table_and_figure_has_a_caption_and_a_category_in_the_report(repo):
    rules = re.split(r"(?m)^ *rule ", (repo / "workflow" / "rules" / "tables.smk").read_text())[1:]
    assert len(rules) == 5
    for rule in rules:
        flagged = re.search(r"report\(\s*\"results/[^\"]*\",(.*?)\n        \)", rule, re.S)
        assert flagged and re.search(r'category="[^"]+"', flagged[1]) and "labels=" in flagged[1], rule[:40]
        caption = re.search(r'caption="\.\./report/(\w+\.rst)"', flagged[1])
        assert (repo / "workflow" / "report" / caption[1]).read_text().strip()
    written = {path.name for path in (repo / "workflow" / "report").glob("*.rst")}
    assert written == set(re.findall(r"\w+\.rst", "".join(rules)))


def test_a_figure_of_an_inside_needs_the_look_of_its_runs_alone(workflow):
    status, out = workflow.run("-n", "results/crossglg/fig6.svg")
    assert status == 0, out[-3000:]
    jobs = _jobs(out)
    assert jobs["inspect_run"] == jobs["train"] == 2 and jobs["figure_of_paper"] == 1
    status, out = workflow.run("-n", "results/lga/figalpha.svg")
    assert status == 0 and "inspect_run" not in _jobs(out)


def test_environment_is_the_one_of_the_project(repo):
    content = yaml.safe_load((repo / "workflow" / "envs" / "pipeline.yaml").read_text())
    pip = next(entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict))
    assert pip == ["-c ../../constraints.txt", "-e ../.."]
    pins = dict(line.split("==") for line in (repo / "constraints.txt").read_text().split() if "==" in line)
    assert {"torch", "snakemake", "ray", "transformers", "pandas", "openai", "decord"} <= set(pins)
    assert "mmaction2==1.2.0" in (repo / "requirements-openmmlab.txt").read_text()


def test_a_download_and_described_classes_are_planned(workflow):
    own = {"kind": "folder", "root": "data/own", "splits": {"train": 5, "val": 2, "test": 5}, "texts": "none.json"}
    described = {**own, "describe": {"model": "m", "base_url": "http://127.0.0.1:9/v1"}}
    path = workflow.folder / "described.yaml"
    path.write_text(yaml.safe_dump({"substitute": {"hmdb51": "own"}, "datasets": {"own": described}}))
    options = ("--configfile", "tiny.yaml", path.name, "-n", "-p")
    status, out = workflow.run("results/lga/table2.csv", "results/download/hmdb51.json", *options)
    assert status == 0, out[-3000:]
    jobs = _jobs(out)
    assert jobs["download"] == 1 and jobs["describe_classes"] == 1
    assert "python -m pipeline text own-" in out
    assert "python -m pipeline download hmdb51 --record results/download/hmdb51.json" in out


def test_poses_from_videos_are_planned(workflow):
    own = {
        "kind": "skeletons", "format": "poses", "videos": "data/own", "pose": {"backend": "blazepose"},
        "graph": "ntu25", "texts": "none.json", "policy": {"bodies": 1}, "feed": {"frames": 16},
        "protocol": {"novel": 3, "exemplars": "first",
                     "bases": {f"{share}%": 3 for share in (20, 40, 50, 60, 80, 100)}},
    }  # fmt: skip
    path = workflow.folder / "poses.yaml"
    path.write_text(
        yaml.safe_dump({"substitute": {"ntu120_oneshot": "own", "ntu60_oneshot": "own"}, "datasets": {"own": own}})
    )
    status, out = workflow.run("results/crossglg/table1.csv", "--configfile", "tiny.yaml", path.name, "-n", "-p")
    assert status == 0, out[-3000:]
    assert _jobs(out)["extract_poses"] == 1
    key = re.search(r"python -m pipeline poses (own-\w+) ", out)[1]
    assert f"results/data/{key}/poses/poses.csv" in out and f"python -m pipeline splits {key} " in out


def test_a_site_s_words_are_added_to_what_the_profile_asks_for(workflow, repo):
    """Every job has the partition, and keeps the profile's memory, time and CPUs."""
    words = ["--profile", str(repo / "slurm"), "--config", "site={slurm_partition: gpu, qos: 7}"]
    status, out = workflow.run("-n", "results/lga/table4.csv", *words)
    assert status == 0, out[-3000:]
    assert "note: scale demo runs, and not paper" in out
    asked = re.findall(r"^ +resources: (.*)$", out, re.M)
    for each in ("slurm_partition=gpu", "qos=7", "mem_mb=8000", "runtime=240", "cpus_per_task=2"):
        assert asked and all(each in line for line in asked), each


def test_a_second_config_is_an_error(workflow):
    status, out = workflow.run("-n", "--config", "scale=quick", "--config", "seeds=[0]")
    assert status == 2 and "error: --config is given twice" in out
