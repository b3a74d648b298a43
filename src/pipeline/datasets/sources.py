"""What a data set is defined as: its kind, and where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.experiment import Asset
from pipeline.names import near_path
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.datasets.skeletons.prepare import SkeletonDefinition


KINDS = ("synthetic", "folder", "list", "skeletons", "semi")
GENERATED, POSES = "generated", "poses"


def video_root(asset: Asset, ws: Workspace) -> Path:
    """Folder to which the paths in index.csv are relative.

    Raises:
        UserError: the data set says no `root`, or there is no such folder.
    """
    if asset.spec["kind"] == "synthetic":
        return ws.dataset(asset.key) / GENERATED
    if "reads" in asset.spec:
        return ws.dataset(asset.spec["reads"]) / GENERATED
    if asset.spec["kind"] == "skeletons" and "videos" in asset.options:
        return ws.dataset(asset.key) / POSES
    root = asset.options.get("root")
    if not root:
        raise UserError(f"{where_defined(asset)}: key root is missing (where its files are)")
    path = Path(root).expanduser()
    if not (path.is_dir() or (asset.spec["kind"] == "skeletons" and path.is_file())):
        raise UserError(
            f"data set {asset.name}: nothing at {root}; put its files there or set root: to where they "
            f"are{near_path(root)}"
        )
    return path


def where_defined(asset: Asset) -> str:
    """Where a data set is defined, for messages."""
    file = Path(f"config/datasets/{asset.name}.yaml")
    return str(file) if file.is_file() else f"data set {asset.name} (given on the command line or in a config file)"


def skeleton_definition(asset: Asset, ws: Workspace, frames: Mapping[str, Any] | None = None) -> SkeletonDefinition:
    """The definition of a skeleton data set; `frames` of a run say how it is shown.

    Raises:
        UserError: a key of it is wrong.
    """
    from pipeline.datasets.skeletons.prepare import SkeletonDefinition

    spec = {key: value for key, value in {**asset.spec, **asset.options}.items() if key != "reads"}
    spec |= {"root": str(video_root(asset, ws))}
    spec |= {key: frames[key] for key in ("policy", "feed")} if frames else {}
    return SkeletonDefinition.read(spec, where_defined(asset))
