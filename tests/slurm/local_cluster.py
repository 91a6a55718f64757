"""A SLURM of one node with pretend GPUs on this machine: real daemons, in a folder of their own.

    python tests/slurm/local_cluster.py start FOLDER     needs root and Debian's slurm-wlm and munge
    python tests/slurm/local_cluster.py stop FOLDER

Partitions: `main`, and `high`, whose jobs push those of `main` back into the queue.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

GPUS, CPUS, MEMORY_MB = 4, 8, 16_000
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
ETC = Path("/etc/slurm")  # job steps of Snakemake drop SLURM_CONF, so it has to be the place that SLURM was built with
FILES = ("slurm.conf", "gres.conf", "cgroup.conf")

CONF = """\
ClusterName=kd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CryptoType=crypto/munge
CommunicationParameters=NoAddrCache
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MinJobAge={min_job_age}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
SchedulerParameters=batch_sched_delay=0,bf_interval=5,sched_interval=5
GresTypes=gpu
MpiDefault=none
SwitchType=switch/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=30
OverTimeLimit=0
InactiveLimit=0
ReturnToService=2
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} CoresPerSocket={cpus} RealMemory={memory} Gres=gpu:{gpus}
PartitionName=main Nodes={host} Default=YES PriorityTier=1 GraceTime=20 DefaultTime=60
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF DefaultTime=60
"""


def missing() -> str:
    """Say why there can be no cluster here; empty where there can."""
    if os.geteuid():
        return "SLURM's daemons need root"
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    if lacking := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        return f"{lacking[0]} is not installed (Debian: apt-get install slurm-wlm munge)"
    if others := [name for name in FILES if (ETC / name).exists() and not (ETC / name).is_symlink()]:
        return f"{ETC / others[0]} belongs to a SLURM of this machine"
    return ""


class Cluster:
    """The cluster in a folder; a context that starts and stops it."""

    def __init__(self, folder: Path, min_job_age: int = 86_400):
        """min_job_age: seconds for which squeue still knows a job that has ended."""
        self.folder, self.min_job_age, self.host = folder.resolve(), min_job_age, socket.gethostname().split(".")[0]

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Write the configuration, start munge and both daemons, wait until the node takes jobs."""
        for name in ("state", "spool", "devices", "munge"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "munge").chmod(0o700)
        self._configure()
        key = self.folder / "munge/key"
        if not key.exists():
            key.write_bytes(secrets.token_bytes(128))
            key.chmod(0o400)
        places = {"key-file": key, "socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log"}
        options = [f"--{name}={self.folder / place}" for name, place in places.items()]
        _daemon("munged", "--force", f"--seed-file={self.folder}/munge/seed", *options)
        self.start_controller()
        _daemon("slurmd", "-N", self.host)
        _until(lambda: self._node() in ("idle", "mixed", "allocated"), "the node takes no jobs")

    def start_controller(self) -> None:
        """Start slurmctld, also again."""
        _daemon("slurmctld")
        _until(lambda: _said("scontrol", "ping").count("UP") > 0, "slurmctld does not answer")
        if (self.folder / "slurmd.pid").exists():  # it was killed: the node has to be known again
            _until(lambda: self._node() in ("idle", "mixed", "allocated"), "the node takes no jobs", 60)

    def forget_after(self, seconds: int) -> None:
        """Let squeue know a job for that many seconds after its end."""
        self.min_job_age = seconds
        self._configure()
        _said("scontrol", "reconfigure")
        _until(
            lambda: f"MinJobAge = {seconds} sec" in " ".join(_said("scontrol", "show", "config").split()), "no change"
        )

    def kill_controller(self) -> None:
        """Kill slurmctld without warning."""
        self._kill("slurmctld", signal.SIGKILL)

    def stop(self) -> None:
        """Cancel all jobs, stop the daemons, take the configuration away."""
        _said("scancel", "--full", "--user", "root")
        with contextlib.suppress(TimeoutError):
            _until(lambda: not _said("squeue", "-h", "-t", "R,CG"), "jobs do not end", 10)
        for name in ("slurmd", "slurmctld", "munged"):
            self._kill(name, signal.SIGTERM)
        for name in FILES:
            if (ETC / name).is_symlink() and (ETC / name).readlink() == self.folder / name:
                (ETC / name).unlink()

    def _configure(self) -> None:
        for number in range(GPUS):  # slurmd wants character devices: clones of /dev/null
            device = self.folder / f"devices/gpu{number}"
            if not device.exists():
                os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        sizes = {"cpus": CPUS, "memory": MEMORY_MB, "gpus": GPUS, "min_job_age": self.min_job_age}
        devices = f"{self.folder}/devices/gpu[0-{GPUS - 1}]"
        gres = f"AutoDetect=off\nNodeName={self.host} Name=gpu Flags=nvidia_gpu_env File={devices}\n"
        texts = (CONF.format(host=self.host, folder=self.folder, **sizes), gres, "CgroupAutomount=no\n")
        ETC.mkdir(exist_ok=True)
        for name, text in zip(FILES, texts, strict=True):
            (self.folder / name).write_text(text, encoding="utf-8")
            (ETC / name).unlink(missing_ok=True)
            (ETC / name).symlink_to(self.folder / name)

    def _node(self) -> str:
        state = _said("sinfo", "-h", "-N", "-n", self.host, "-p", "main", "-o", "%T").strip()
        if state.startswith(("down", "drain")):
            _said("scontrol", "update", f"NodeName={self.host}", "State=RESUME")
        return state

    def _kill(self, name: str, number: signal.Signals) -> None:
        file = self.folder / f"{name}.pid"
        with contextlib.suppress(OSError, ValueError):
            process = int(file.read_text())
            if Path(f"/proc/{process}/comm").read_text().strip() == name:
                os.kill(process, number)
                _until(lambda: not Path(f"/proc/{process}").exists(), f"{name} does not end")
            file.unlink()


def _daemon(*command: str) -> None:
    """Start a program that goes into the background by itself."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    done = subprocess.run(
        [shutil.which(command[0], path=path) or command[0], *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} does not start: {done.stderr.strip()}")


def _said(*command: str) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    return ""


def _until(holds: Callable[[], bool], otherwise: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.1)


if __name__ == "__main__":
    if sys.argv[1:2] not in (["start"], ["stop"]) or len(sys.argv) != 3:
        sys.exit(__doc__)
    if why := missing():
        sys.exit(why)
    cluster = Cluster(Path(sys.argv[2]))
    cluster.start() if sys.argv[1] == "start" else cluster.stop()
