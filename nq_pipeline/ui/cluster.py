"""A cluster on one machine, in the sandbox, to try out: `make cluster`.

    shared     PostgreSQL (Dagster, ledger, leases), Redis (queues), an S3 stand-in (lake and archive)
    control    `nq ui`: Dagster's web server and daemon, and the stand-ins of the vendors
    worker-a, worker-b    take runs from the queue `dagster`
    capture    takes runs from the queue `capture`; its log stays on its disk

Each host is a folder with its own data; no two share a path. Everything is below one temporary folder, which
is removed at the end.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from nq_pipeline.errors import UiError

HOST = "127.0.0.1"
INSTANCE = Path("deploy") / "dagster.yaml"
START_S, STOP_S, POLL_S = 300.0, 30.0, 0.2
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BUCKET = "nq-cluster"
DATABASES = ("dagster", "ledger")
QUEUES = {"worker-a": "dagster", "worker-b": "dagster", "capture": "capture"}


class Program:
    """A process in a group of its own, that can be stopped, killed and started again.

    Attributes
    ----------
    log
        What it prints.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        stop_with: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.log = log
        self._command, self._environment, self._stop_with = command, environment, stop_with
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, is_ready: Callable[[], bool] | str = lambda: True) -> None:
        """Start it and wait until it is ready, or has printed a text; raises `UiError` if it does not."""
        begins = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.log.parent,
                env=None if self._environment is None else {**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The child of a program in the background would ignore SIGINT.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        give_up = time.monotonic() + START_S
        while not (is_ready() if callable(is_ready) else is_ready.encode() in self.log.read_bytes()[begins:]):
            if not self.is_running or time.monotonic() > give_up:
                self.kill()
                raise UiError(f"{' '.join(self._command[:4])} … did not start: {self.last_lines()}")
            time.sleep(POLL_S)

    def last_lines(self) -> str:
        """The end of its log."""
        return " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:]) or "no message"

    def stop(self) -> None:
        """End it and every process it started; kill what does not end by itself."""
        if self._process is None:
            return
        self._signal(self._stop_with)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """End the whole group at once, as a power cut would."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@dataclass(frozen=True)
class Shared:
    """What all hosts share, and the addresses of it."""

    postgres: Program
    redis: Program
    store: Program
    postgres_port: int
    redis_port: int
    store_port: int
    sandbox_port: int
    password: str = field(repr=False)

    def environment(self, host: Path) -> dict[str, str]:
        """The variables of a host: the shared addresses, and a data folder of its own."""
        redis = f"redis://{HOST}:{self.redis_port}"
        return {
            "NQ_DATA_DIR": str(host / "data"),
            "NQ_LAKE_URL": f"s3://{BUCKET}/lakes",
            "NQ_LEDGER_URL": f"postgresql://nq:{self.password}@{HOST}:{self.postgres_port}/ledger",
            "NQ_SANDBOX_PORT": str(self.sandbox_port),
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self.store_port}",
            "AWS_ACCESS_KEY_ID": "nq",
            "AWS_SECRET_ACCESS_KEY": self.password,
            "AWS_REGION": "us-east-1",
            "DAGSTER_HOME": str(host),
            "DAGSTER_PG_HOST": HOST,
            "DAGSTER_PG_PORT": str(self.postgres_port),
            "DAGSTER_PG_USERNAME": "nq",
            "DAGSTER_PG_PASSWORD": self.password,
            "DAGSTER_PG_DB": "dagster",
            "DAGSTER_CELERY_BROKER_URL": f"{redis}/0",
            "DAGSTER_CELERY_BACKEND_URL": f"{redis}/1",
            "DAGSTER_DISABLE_TELEMETRY": "1",
        }

    def start_postgres(self) -> None:
        """Start the server (again) and wait until it takes connections."""
        self.postgres.start(lambda: ask_postgres("pg_isready", self.postgres_port, "", "-q"))


@contextmanager
def shared(folder: Path) -> Iterator[Shared]:
    """Run PostgreSQL, Redis and the S3 stand-in below a folder while the context lasts.

    Raises
    ------
    UiError
        One of them is not installed, or does not start.
    """
    redis_server = shutil.which("redis-server")
    if redis_server is None:
        raise UiError(
            "redis-server is not installed; install it, on Debian with `apt-get install redis-server`"
        )
    postgres_port, redis_port, store_port, sandbox_port = free_ports(4)
    password = secrets.token_hex(16)
    data, become = _new_database(folder / "postgres", password)
    # A socket's path may have 107 bytes, and nobody needs one here.
    listen = ["-c", f"listen_addresses={HOST}", "-c", "unix_socket_directories=", "-c", "max_connections=200"]
    postgres = Program(
        [*become, _postgres_program("postgres"), "-D", str(data), "-p", str(postgres_port), *listen],
        data.parent / "postgres.log",
        stop_with=signal.SIGINT,  # disconnects clients instead of waiting for them
    )
    (folder / "redis").mkdir()
    options = ["--port", str(redis_port), "--bind", HOST, "--appendonly", "yes", "--save", ""]
    redis = Program([redis_server, *options], folder / "redis" / "redis.log")
    (folder / "store").mkdir()
    store = Program(
        [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(store_port)],
        folder / "store" / "store.log",
    )
    pieces = Shared(postgres, redis, store, postgres_port, redis_port, store_port, sandbox_port, password)
    with ExitStack() as running:
        running.callback(postgres.stop)
        pieces.start_postgres()
        for name in DATABASES:
            if not ask_postgres("createdb", postgres_port, password, name):
                raise UiError(f"the database {name} could not be created; see {postgres.log}")
        running.callback(redis.stop)
        redis.start(lambda: _is_listening(redis_port))
        running.callback(store.stop)
        store.start(lambda: _make_bucket(store_port))
        yield pieces


def ui(environment: Mapping[str, str], port: int) -> Program:
    """Dagster's web server and daemon on a host; its log is in the host's folder."""
    command = [sys.executable, "-m", "nq_pipeline", "ui", "--port", str(port)]
    return Program(command, Path(environment["DAGSTER_HOME"]) / "ui.log", environment=environment)


def worker(environment: Mapping[str, str], *, queue: str, slots: int = 1) -> Program:
    """A worker of a host; its log is in the host's folder."""
    host = Path(environment["DAGSTER_HOME"])
    command = [
        *(sys.executable, "-m", "celery", "-A", "nq_pipeline.orchestration.cluster.worker", "worker"),
        *("--hostname", f"{host.name}@%h", "--queues", queue, "--concurrency", str(slots)),
        *("--loglevel", "INFO", "--without-gossip", "--without-mingle"),
    ]
    return Program(command, host / "worker.log", environment=environment)


def prepare_host(folder: Path, environment: Mapping[str, str], instance: Path = INSTANCE) -> None:
    """Give a host its `dagster.yaml` and a `.env`, so that `nq` in its folder works on the cluster's lake."""
    folder.mkdir(parents=True)
    shutil.copyfile(instance, folder / "dagster.yaml")
    file = folder / ".env"
    file.touch(mode=0o600)
    file.write_text("".join(f"{name}={value}\n" for name, value in environment.items()))


def free_ports(count: int) -> list[int]:
    """Free ports on loopback."""
    with ExitStack() as probes:
        found = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in found:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in found]


def run_cluster(folder: Path, port: int, say: Callable[[str], None]) -> None:
    """Run everything below a folder until interrupted; the UI is on `port`."""
    if not INSTANCE.is_file():
        raise UiError(f"there is no {INSTANCE} here; run `make cluster` in a checkout")
    say("Starting PostgreSQL, Redis and the S3 stand-in …")
    with shared(folder) as pieces, ExitStack() as running:
        hosts = {name: pieces.environment(folder / name) for name in ("control", *QUEUES)}
        for name, environment in hosts.items():
            prepare_host(folder / name, environment)
        say("Starting Dagster and three workers …")
        control = ui(hosts["control"], port)
        running.callback(control.stop)
        control.start("Dagster is ready")
        workers = [worker(hosts[name], queue=queue, slots=2) for name, queue in QUEUES.items()]
        for program in workers:
            running.callback(program.stop)
            program.start("ready.")
        for line in describe(pieces, folder, port):
            say(line)
        while control.is_running:
            time.sleep(POLL_S)
        raise UiError(f"Dagster ended by itself: {control.last_lines()}")


def describe(pieces: Shared, folder: Path, port: int) -> list[str]:
    """The addresses, and what to try."""
    return [
        "",
        f"  Dagster      http://{HOST}:{port}",
        f"  PostgreSQL   {HOST}:{pieces.postgres_port}, databases {' and '.join(DATABASES)}, user nq",
        f"  Redis        {HOST}:{pieces.redis_port}",
        f"  S3           http://{HOST}:{pieces.store_port}, bucket {BUCKET}",
        *(f"  {name:<12} {folder / name}" for name in ("control", *QUEUES)),
        "",
        "Each folder is a host, with its settings in .env and its log. Every host sees the same lake:",
        "",
        f"  (cd {folder / 'worker-b'} && {Path(sys.executable).with_name('nq')} sql "
        '"select source, count(*) from source_chain group by all")',
        "",
        "Ctrl-C ends everything and removes the folders.",
    ]


def main() -> None:
    """`python -m nq_pipeline.ui.cluster [PORT]`, until Ctrl-C."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    folder = Path(tempfile.mkdtemp(prefix="nq-cluster-"))
    folder.chmod(0o711)  # the database's user has to reach its own folder

    def end(*_: object) -> None:
        for number in ENDS:  # a second Ctrl-C must not leave half of it running
            signal.signal(number, signal.SIG_IGN)
        print("Stopping everything …", flush=True)
        raise KeyboardInterrupt

    for number in ENDS:
        signal.signal(number, end)
    try:
        run_cluster(folder, port, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        pass
    except UiError as error:
        sys.exit(f"nq: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _new_database(folder: Path, password: str) -> tuple[Path, list[str]]:
    """Create a database cluster: its folder, and the words before a command that make it run as its owner."""
    folder.mkdir()
    become = _as_normal_user(folder)
    given = folder / "password"
    given.touch(mode=0o600)
    given.write_text(password)
    if become:
        shutil.chown(given, "postgres", "postgres")
    words = ["-D", str(folder / "data"), "-U", "nq", "--auth=scram-sha-256", f"--pwfile={given}", "--no-sync"]
    done = subprocess.run(
        [*become, _postgres_program("initdb"), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    given.unlink()
    if done.returncode:
        raise UiError(f"PostgreSQL's initdb failed: {done.stderr.strip()}")
    return folder / "data", become


def _as_normal_user(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root (in a container, say); then it runs as the user `postgres`."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        raise UiError("PostgreSQL does not run as root; start the cluster as another user")
    shutil.chown(folder, "postgres", "postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


def _postgres_program(name: str) -> str:
    """The path of one of PostgreSQL's programs; Debian keeps the server's in a folder of its own."""
    found = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))]
    path = found[-1] if found else shutil.which(name)
    if path is None:
        raise UiError("PostgreSQL is not installed; install it, on Debian with `apt-get install postgresql`")
    return path


def ask_postgres(program: str, port: int, password: str, *words: str) -> bool:
    """Whether one of PostgreSQL's client programs succeeds."""
    command = [_postgres_program(program), "-h", HOST, "-p", str(port), "-U", "nq", *words]
    environment = {**os.environ, "PGPASSWORD": password}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=START_S)
    return done.returncode == 0


def _is_listening(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def _make_bucket(port: int) -> bool:
    """Whether the S3 stand-in answers and has the bucket now."""
    connection = HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("PUT", f"/{BUCKET}")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main()
