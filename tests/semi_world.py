"""A small generated set of videos for semi-supervised runs."""

from __future__ import annotations

from tiny import CONFIG

from pipeline.datasets.index import read_index
from pipeline.experiment import store_key
from pipeline.plan import Plan
from pipeline.stages import make_frames, make_splits, synthesize
from pipeline.workspace import Workspace

TRAIN = {
    "epochs": 3, "steps": 6, "warm_epochs": 1, "batch": 2, "labelled_per_step": 4, "learning_rate": 0.01,
    "optimizer": "sgd", "validate_epochs": 1, "label_rate": 25,
}  # fmt: skip


class SemiWorld:
    """A workspace with a small generated set of 12 classes, and the same videos by lists of the published form."""

    def __init__(self, root):
        self.ws = Workspace(root)
        self.plan = self.read({})
        cell = self.cell("sefar")
        self.prepare(cell.run.dataset)
        self.root = self.ws.dataset(self.plan.datasets[cell.run.dataset].spec["reads"]) / "generated"
        self.clips = read_index(self.ws.dataset(cell.run.dataset) / "index.csv")

    def read(self, datasets):
        overlay = {
            "scale": "demo",
            "datasets": {
                "synthetic_fine": {"clips_per_class": 5, "size": 32},
                "synthetic_semi": {"clips": {"train": 3, "val": 1, "test": 1}},
                **datasets,
            },
            "frames": {"store": {"size": [36, 36], "frames": 12}},
            "substitute_backbone": dict.fromkeys(("vit_s16", "vit_b16", "clip_vit_l14"), "vit_nano_scratch"),
            "backbones": {
                "vit_nano_scratch": {"source": {"width": 16, "depth": 1, "heads": 2, "patch": 16, "image_size": 32}}
            },
        }
        return Plan.read(CONFIG, overlay)

    def prepare(self, key):
        """Videos, index and frames of a data set."""
        self.plan.write_specs(self.ws.root / "specs")
        asset = self.plan.datasets[key]
        if "reads" in asset.spec:
            synthesize(self.plan.datasets[asset.spec["reads"]], self.ws, 1)
        make_splits(asset, self.ws, 1)
        frames = self.plan.frames(asset)
        make_frames(asset, self.ws, store_key(frames), frames["store"], 1)

    def cell(self, method, dataset="gym99", train=None, seed=0, **rest):
        """The cell of one method, small."""
        return self.of(self.plan, method, dataset, train, seed, **rest)

    def of(self, plan, method, dataset, train, seed=0, **rest):
        recipe = plan.method(method, "the test")[0]["train"]
        known = TRAIN | ({"unlabelled": 1} if recipe["unlabelled"] else {})
        known |= {"pretraining": {"epochs": 1, "steps": 3, "milestones": []}} if recipe.get("pretraining") else {}
        experiment = {"dataset": dataset, "method": method, "train": {**known, **(train or {})}, **rest}
        cell = plan.cell(experiment, seed, "the test")
        plan.runs.setdefault(cell.run.id, cell.run)
        plan.write_specs(self.ws.root / "specs")
        return cell

    def elsewhere(self, folder):
        """The same data under another root."""
        folder.mkdir(parents=True)
        for name in ("data", "specs"):
            (folder / name).symlink_to(self.ws.root / name)
        return Workspace(folder)

    def listed(self, name, folder, swap=False):
        """The same videos as a data set with lists at 10 %; `swap` gives the unlabelled ones wrong labels."""
        names = sorted({clip.label for clip in self.clips})
        lines: dict[str, list] = {"train": [], "unlabel": [], "test": []}
        place: dict[str, int] = {}
        for clip in sorted(self.clips, key=lambda clip: clip.clip):
            place[clip.label] = place.get(clip.label, -1) + 1
            part = "test" if clip.split == "test" else "train" if place[clip.label] < 2 else "unlabel"
            lines[part].append([f"/elsewhere/{clip.path}", names.index(clip.label)])
        if swap:
            for line in lines["unlabel"]:
                line[1] = (line[1] + 5) % len(names)
        (folder / "10").mkdir(parents=True)
        for part, rows in lines.items():
            (folder / "10" / f"{part}.csv").write_text("".join(f"{path} {label}\n" for path, label in rows))
        self.plan = self.read(
            {name: {"kind": "semi", "root": str(self.root), "lists": str(folder), "validation": 0.1}}
        )  # fmt: skip
        cell = self.cell("sefar", name, {"label_rate": 10}, selection="last")
        self.prepare(cell.run.dataset)
        return cell
