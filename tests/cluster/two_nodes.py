"""A real Slurm cluster of two nodes on one machine, for the tests.

Each node is a slurmd in a network namespace of its own, joined by a bridge, so that programs on different nodes meet
only through the addresses that a real cluster's nodes would have. Needs root, and the packages slurmctld, slurmd,
slurm-client, munge and iproute2 of Debian. Everything that is started is ended by its process id.

    python tests/cluster/two_nodes.py FOLDER     # builds it, says how to use it, waits for Ctrl-C
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

SITE = Path("/etc/slurm")  # where a job step looks, which Snakemake starts without SLURM_CONF
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "ip", "nsenter")
NODES = ("n1", "n2")
GPUS = 2  # files that a node calls its GPUs


def lacking() -> str:
    """Why the cluster cannot be built here, in a few words; empty if it can."""
    paths = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if not shutil.which(program, path=paths)]
    if missing:
        return f"not installed: {', '.join(missing)} (make cluster-packages)"
    if os.geteuid():
        return "network namespaces need root"
    if (SITE / "slurm.conf").exists():
        return f"there is a Slurm already ({SITE}/slurm.conf)"
    probe = f"probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace can be made ({made.stderr.strip()})"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return ""


class Slurm:
    """The cluster below `folder`; a context manager.

    `environment` is what its clients (sbatch, srun, snakemake) need.
    """

    def __init__(self, folder: Path, cpus: int = 8, memory: int = 12000) -> None:
        self.folder, self.cpus, self.memory = folder, cpus, memory
        self.net = 16 + os.getpid() % 200  # a network of its own, so that two clusters may live at a time
        self.tag = f"{os.getpid() % 10000}"
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.environment["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        self.daemons: dict[str, subprocess.Popen] = {}
        self._exit = ExitStack()

    def address(self, node: str) -> str:
        """The address of a node."""
        return f"10.77.{self.net}.{11 + NODES.index(node)}"

    def __enter__(self) -> Slurm:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._network()
            self._munge()
            self._configure()
            self._exit.callback(self._stop_daemons)
            self.start("slurmctld")
            for node in NODES:
                self.start(node)
            self.wait_idle()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True, timeout=30)
        end = time.monotonic() + 20
        while self.run("squeue", "-h").stdout.strip() and time.monotonic() < end:
            time.sleep(0.5)
        self._exit.close()

    def run(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess:
        """A command with the cluster's environment."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout)

    def inside(self, node: str) -> list[str]:
        """Words before a command that let it run on a node's network."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(node)}"]

    def namespace(self, node: str) -> str:
        """Name of the network namespace of a node."""
        return f"{node}-{self.tag}"

    def start(self, name: str) -> None:
        """Start (again) the controller or the daemon of a node."""
        options = ["slurmctld", "-D", "-f", str(self.folder / "slurm.conf")]
        if name in NODES:
            options = [*self.inside(name), "slurmd", "-D", "-N", name, "-f", str(self.folder / "slurm.conf")]
        with (self.folder / f"{name}.out").open("a") as out:
            # In a session of its own: what the tests send to their own group does not reach it.
            self.daemons[name] = subprocess.Popen(
                options, env=self.environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def kill(self, name: str) -> None:
        """SIGKILL the controller or the daemon of a node, with the steps that it runs."""
        if name in NODES:
            self._end_steps(name)
        self.daemons[name].kill()
        self.daemons[name].wait()

    def wait_idle(self, seconds: float = 60) -> None:
        """Wait until all nodes take jobs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, daemon in self.daemons.items():
                if daemon.poll() is not None:
                    raise RuntimeError(f"{name} has ended:\n{(self.folder / f'{name}.out').read_text()[-2000:]}")
            states = self.run("sinfo", "-h", "-N", "-o", "%T").stdout.split()
            if len(states) == len(NODES) and set(states) == {"idle"}:
                return
            time.sleep(0.3)
        raise RuntimeError(f"the nodes are not ready: {self.run('sinfo', '-N', '-l').stdout}")

    # Parts

    def _network(self) -> None:
        def ip(*words: str) -> None:
            subprocess.run(["ip", *words], check=True, capture_output=True)

        bridge = f"br{self.tag}"
        ip("link", "add", bridge, "type", "bridge")
        self._exit.callback(subprocess.run, ["ip", "link", "delete", bridge], capture_output=True)
        ip("address", "add", f"10.77.{self.net}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for node in NODES:
            space, outer, inner = self.namespace(node), f"v{node}{self.tag}", f"w{node}{self.tag}"
            ip("netns", "add", space)
            self._exit.callback(subprocess.run, ["ip", "netns", "delete", space], capture_output=True)
            ip("link", "add", outer, "type", "veth", "peer", "name", inner)
            ip("link", "set", inner, "netns", space)
            ip("link", "set", outer, "master", bridge, "up")
            ip("-n", space, "link", "set", inner, "name", "eth0")
            ip("-n", space, "address", "add", f"{self.address(node)}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "route", "add", "default", "via", f"10.77.{self.net}.1")

    def _munge(self) -> None:
        """An authentication daemon with a key of its own; its folders may not be writable by others."""
        folder = Path(f"/run/slurm-test-{self.tag}")
        folder.mkdir(mode=0o755)
        self._exit.callback(shutil.rmtree, folder, ignore_errors=True)
        key = folder / "key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        self.socket = folder / "socket"
        options = [f"--{name}-file={folder / name}" for name in ("pid", "log", "seed")]
        munge = subprocess.Popen(
            ["munged", "--foreground", "--force", f"--socket={self.socket}", f"--key-file={key}", *options],
            env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._exit.callback(_end, munge)
        while not self.socket.exists():
            if munge.poll() is not None:
                raise RuntimeError(f"munged has ended: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.1)

    def _configure(self) -> None:
        here, controller = self.folder, _free_port()
        for name in ("state", "spool", "gpus"):
            (here / name).mkdir(exist_ok=True)
        for number in range(GPUS):
            (here / "gpus" / f"gpu{number}").touch()
        (here / "gres.conf").write_text(f"Name=gpu File={here}/gpus/gpu[0-{GPUS - 1}]\n")
        host = socket.gethostname()
        lines = [
            "ClusterName=test", f"SlurmctldHost={host}(10.77.{self.net}.1)", f"SlurmctldPort={controller}",
            "AuthType=auth/munge", f"AuthInfo=socket={self.socket}", "CredType=cred/munge", "SlurmUser=root",
            "SlurmdUser=root", "ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none",
            "SelectType=select/cons_tres", "SelectTypeParameters=CR_Core", "JobAcctGatherType=jobacct_gather/none",
            "AccountingStorageType=accounting_storage/none", "JobCompType=jobcomp/none", "MpiDefault=none",
            "SwitchType=switch/none", "ReturnToService=2", "SlurmdParameters=config_overrides", "GresTypes=gpu",
            "KillWait=10", "SlurmdTimeout=20", "MinJobAge=600",
            "SchedulerParameters=sched_interval=1,batch_sched_delay=0",
            "SchedulerType=sched/backfill",
            f"StateSaveLocation={here}/state", f"SlurmdSpoolDir={here}/spool/%n",
            f"SlurmctldPidFile={here}/slurmctld.pid", f"SlurmdPidFile={here}/slurmd-%n.pid",
            f"SlurmctldLogFile={here}/slurmctld.log", f"SlurmdLogFile={here}/slurmd-%n.log",
            *(f"NodeName={node} NodeAddr={self.address(node)} NodeHostname={host} Port={17001 + i} CPUs={self.cpus} "
              f"RealMemory={self.memory} Gres=gpu:{GPUS} State=UNKNOWN" for i, node in enumerate(NODES)),
            f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO",
        ]  # fmt: skip
        (here / "slurm.conf").write_text("\n".join(lines) + "\n")
        SITE.mkdir(exist_ok=True)
        for name in ("slurm.conf", "gres.conf"):
            (SITE / name).unlink(missing_ok=True)  # a link to what is gone
            (SITE / name).symlink_to(here / name)
            self._exit.callback((SITE / name).unlink)

    def processes(self, *nodes: str) -> list[tuple[int, str]]:
        """(id, words) of every process whose network is a node's; without the daemons."""
        found = []
        for node in nodes or NODES:
            listed = subprocess.run(["ip", "netns", "pids", self.namespace(node)], capture_output=True, text=True)
            for pid in map(int, listed.stdout.split()):
                with suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
                    if pid != self.daemons[node].pid:
                        found.append((pid, words))
        return found

    def _end_steps(self, node: str) -> None:
        """SIGKILL every process whose network is the node's, but its daemon."""
        for pid, _ in self.processes(node):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _stop_daemons(self) -> None:
        for node in NODES:
            if node in self.daemons:
                self._end_steps(node)
        for daemon in reversed(self.daemons.values()):
            _end(daemon)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    if reason := lacking():
        sys.exit(reason)
    with Slurm(Path(sys.argv[1]).resolve()) as built:
        print(f"export SLURM_CONF={built.folder}/slurm.conf; then sinfo, srun, sbatch; Ctrl-C ends it", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        signal.pause()
