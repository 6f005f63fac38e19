"""The module inspect_host, piece by piece and as a program."""

import http.server
import json
import os
import platform
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"
MODULE = "roles/inspect/library/inspect_host.py"


@pytest.fixture(scope="module")
def inspect_host(load_plugin):
    return load_plugin(MODULE)


@pytest.fixture
def look(repo, tmp_path):
    """Run the module as Ansible does, and return what it says."""

    def run(environment=None, check_mode=False, **options):
        arguments = {"data_path": "/var/lib/deepseek-r1", **options}
        arguments["_ansible_check_mode"] = check_mode
        file = tmp_path / "arguments.json"
        file.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        done = subprocess.run(
            [sys.executable, repo / MODULE, file],
            capture_output=True,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def hub():
    """A web server that answers /good with 200, /none with 404, /broken with 503, /slow late."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/slow"):
                time.sleep(2)
            codes = {"/good/": 200, "/none/": 404, "/broken/": 503, "/registry/v2/": 200}
            self.send_response(codes.get(self.path, 500))
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_this_machine(look, tmp_path):
    start = time.monotonic()
    seen = look(data_path=str(tmp_path / "not/yet/there"))
    assert time.monotonic() - start < 2  # the machine that runs the tests may be busy
    assert seen["changed"] is False
    assert seen["problems"] == []
    assert seen["arch"] == platform.machine()
    assert seen["python"] == platform.python_version()
    assert seen["root"] == (os.geteuid() == 0)
    assert 1 <= seen["cpu"]["count"] <= os.cpu_count()
    assert "fpu" in seen["cpu"]["flags"] or seen["arch"] != "x86_64"
    assert seen["ram_mib"] >= seen["ram_available_mib"] > 0
    assert seen["disk"]["path"] == str(tmp_path)
    assert seen["disk"]["free_mib"] > 0
    assert seen["disk"]["read_only"] is False


def test_a_folder_that_only_its_owner_may_enter(look):
    with tempfile.TemporaryDirectory() as folder:
        assert look(data_path=f"{folder}/a/data")["disk"]["closed"] == folder
        Path(folder).chmod(0o755)
        assert look(data_path=f"{folder}/a/data")["disk"]["closed"] is None


def test_check_mode_says_the_same(look):
    seen, checked = look(), look(check_mode=True)
    for report in (seen, checked):
        for changing in ("ram_available_mib", "disk", "foreign", "invocation"):
            report.pop(changing, None)
    assert seen == checked


def test_recorded_h100(inspect_host):
    report = (DATA / "nvidia-smi-h100.xml").read_text()
    assert inspect_host.parse_gpus(report, "0, 9.0\n") == {
        "driver_version": "580.159.04",
        "cuda_version": "13.0",
        "gpus": [
            {
                "index": 0,
                "name": "NVIDIA H100 80GB HBM3",
                "uuid": "GPU-00000000-0000-0000-0000-000000000000",
                "memory_mib": 81559,
                "memory_used_mib": 0,
                "compute_capability": "9.0",
                "mig": False,
                "processes": [],
                "slices": [],
            }
        ],
    }


def test_a_driver_without_compute_cap_is_helped_by_the_architecture(inspect_host):
    report = (DATA / "nvidia-smi-h100.xml").read_text()
    assert inspect_host.parse_gpus(report, "")["gpus"][0]["compute_capability"] == "9.0"


def stand_in(folder, script):
    """A program named nvidia-smi, for a machine that has no card."""
    path = folder / "nvidia-smi"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_cards_are_read_from_nvidia_smi(look, tmp_path):
    report = DATA / "nvidia-smi-h100.xml"
    script = f'case "$1" in -q) cat {report};; *) echo "0, 9.0";; esac\n'
    seen = look(environment=stand_in(tmp_path, script))
    assert [gpu["memory_mib"] for gpu in seen["gpus"]] == [81559]
    assert seen["tools"]["nvidia_smi"] is True
    assert seen["driver_version"] == "580.159.04"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n",
            "Driver/library version mismatch",
        ),
        ("echo '<nvidia_smi_log>'\n", "no element found"),
    ],
)
def test_a_broken_nvidia_smi_is_a_problem_not_a_crash(look, tmp_path, script, reason):
    seen = look(environment=stand_in(tmp_path, script))
    assert seen["gpus"] == []
    (problem,) = seen["problems"]
    assert problem.startswith("GPUs could not be read: ")
    assert reason in problem


def test_whose_process_holds_a_card(look, tmp_path):
    """The recorded report with a process added by hand."""
    process = (
        f"<process_info><pid>{os.getpid()}</pid><process_name>/usr/bin/python3</process_name>"
        "<used_memory>31949 MiB</used_memory></process_info>"
    )
    text = (DATA / "nvidia-smi-h100.xml").read_text()
    (tmp_path / "report.xml").write_text(text.replace("<processes>", "<processes>" + process))
    script = f'case "$1" in -q) cat {tmp_path}/report.xml;; *) echo "0, 9.0";; esac\n'
    environment = stand_in(tmp_path, script)

    def found(**options):
        return look(environment=environment, **options)["gpus"][0]["processes"]

    held = {"pid": os.getpid(), "name": "python3", "used_mib": 31949}
    assert found() == [held | {"ours": False}]
    assert found(own_users="root") == [held | {"ours": os.geteuid() == 0}]
    assert found(own_paths=["/usr/bin/python3"]) == [held | {"ours": True}]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_our_own_engine_on_a_card_where_no_process_is_listed(inspect_host, background, monkeypatch):
    """Another device stands in for a card's."""
    monkeypatch.setattr(inspect_host, "GPU_DEVICES", "/dev/zer[o]")
    hold = "import time; zero = open('/dev/zero'); print(flush=True); time.sleep(60)"
    process = background(
        ["/usr/bin/env", "CUDA_VISIBLE_DEVICES=GPU-1", "/usr/bin/python3", "-c", hold],
        ready=lambda: inspect_host.gpu_holders("nobody"), user="nobody", group="nogroup",
    )  # fmt: skip
    assert inspect_host.gpu_holders("nobody") == {process.pid: "GPU-1"}
    assert inspect_host.gpu_holders("r1-") == {}


def test_the_cards_that_the_host_hides(look):
    assert look(environment={"CUDA_VISIBLE_DEVICES": "1"})["gpus_visible"] == {
        "variable": "CUDA_VISIBLE_DEVICES",
        "value": "1",
        "where": "the environment of the deploy",
    }


def test_cards_are_seen_without_a_driver(look, tmp_path):
    """Folders made by hand in the form of /sys/bus/pci/devices, read in the form of lspci -nnk."""
    devices = {
        "0000:01:00.0": ("0x10de", "0x2330", "0x030200"),
        "0000:01:00.1": ("0x10de", "0x22ba", "0x040300"),
        "0000:02:00.0": ("0x1002", "0x744c", "0x030000"),
        "0001:03:00.0": ("0x10de", "0x2b85", "0x030000"),
    }
    for name, (vendor, device, kind) in devices.items():
        for file, text in (("vendor", vendor), ("device", device), ("class", kind)):
            write(tmp_path / "devices" / name / file, text + "\n")
    (tmp_path / "nouveau").mkdir()
    (tmp_path / "devices/0000:01:00.0/driver").symlink_to(tmp_path / "nouveau")
    assert look(pci=str(tmp_path / "devices"))["cards"].splitlines() == [
        "01:00.0 3D controller [0302]: NVIDIA Corporation Device [10de:2330]",
        "\tKernel driver in use: nouveau",
        "0001:03:00.0 VGA compatible controller [0300]: NVIDIA Corporation Device [10de:2b85]",
    ]
    assert look(pci=str(tmp_path / "none"))["cards"] == ""


def test_operating_systems(inspect_host, tmp_path):
    file = tmp_path / "os-release"
    file.write_text(
        'PRETTY_NAME="Ubuntu 24.04.1 LTS"\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n'
        "ID=ubuntu\nID_LIKE=debian\n"
    )
    assert inspect_host.operating_system(file) == {
        "id": "ubuntu",
        "version": "24.04",
        "pretty": "Ubuntu 24.04.1 LTS",
        "codename": "noble",
        "family": "debian",
    }
    file.write_text('ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n')
    assert inspect_host.operating_system(file)["family"] == "fedora"
    assert inspect_host.operating_system(tmp_path / "missing")["id"] == "unknown"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_cgroup_v2_limits_of_all_levels(inspect_host, tmp_path):
    write(tmp_path / "cgroup.controllers", "cpu memory\n")
    write(tmp_path / "box/memory.max", f"{8 << 30}\n")
    write(tmp_path / "box/memory.current", f"{3 << 30}\n")
    write(tmp_path / "box/memory.stat", f"anon 5\ninactive_file {1 << 30}\n")
    write(tmp_path / "box/cpu.max", "250000 100000\n")
    write(tmp_path / "box/session/memory.max", "max\n")
    write(tmp_path / "box/session/cpu.max", "max 100000\n")
    folders = list(inspect_host.cgroup_folders("memory", "0::/box/session\n", tmp_path))
    assert folders == [tmp_path / "box/session", tmp_path / "box", tmp_path]
    assert inspect_host.cgroup_memory(folders) == (8 << 30, 6 << 30)
    assert inspect_host.cgroup_cpus(folders) == 2.5


def test_cgroup_v1_limits_seen_from_inside_a_container(inspect_host, tmp_path):
    write(tmp_path / "memory/memory.limit_in_bytes", f"{4 << 30}\n")
    write(tmp_path / "memory/memory.usage_in_bytes", f"{1 << 30}\n")
    write(tmp_path / "memory/memory.stat", "total_inactive_file 0\n")
    write(tmp_path / "cpu/cpu.cfs_quota_us", "150000\n")
    write(tmp_path / "cpu/cpu.cfs_period_us", "100000\n")
    text = "5:memory:/docker/0123\n4:cpu,cpuacct:/docker/0123\n0::/\n"
    memory = list(inspect_host.cgroup_folders("memory", text, tmp_path))
    assert inspect_host.cgroup_memory(memory) == (4 << 30, 3 << 30)
    assert inspect_host.cgroup_cpus(inspect_host.cgroup_folders("cpu", text, tmp_path)) == 1.5


def test_no_cgroup_limit(inspect_host, tmp_path):
    write(tmp_path / "memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(tmp_path / "cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "cpu/cpu.cfs_period_us", "100000\n")
    text = "5:memory:/\n1:cpu:/\n"
    assert inspect_host.cgroup_memory(inspect_host.cgroup_folders("memory", text, tmp_path)) is None
    assert inspect_host.cgroup_cpus(inspect_host.cgroup_folders("cpu", text, tmp_path)) is None


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_held_port_names_its_holder(look, address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as server:
        server.bind((address, 0))
        port = str(server.getsockname()[1])
        assert look(ports=[port, "http"])["ports"] == {}  # bound, yet nobody listens
        server.listen()
        held = look(ports=[port])["ports"][port]
    assert held["pid"] == os.getpid()
    assert held["process"] == Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    assert "python" in held["cmdline"]
    assert held["ours"] is False


SERVE = "import socket, sys, time; s = socket.create_server(('', int(sys.argv[1]))); time.sleep(60)"


def test_our_own_services_are_known_by_their_paths(look, background, free_port):
    port = str(free_port())

    def serves():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(port))) == 0

    background(
        [sys.executable, "-c", SERVE, port, "/etc/deepseek-r1/gateway/nginx.conf"], ready=serves
    )
    assert look(ports=[port])["ports"][port]["ours"] is True
    assert look(ports=[port], own_paths=["/srv"])["ports"][port]["ours"] is False


def test_our_own_services_are_known_by_their_user(inspect_host):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        user = inspect_host.user_name(os.getuid())
        assert inspect_host.holders({port}, [], user, {})[str(port)]["ours"] is True
        assert inspect_host.holders({port}, [], "r1-", {})[str(port)]["ours"] is False


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_holders_that_root_in_a_container_may_not_look_into(inspect_host, background, free_port):
    """Without CAP_SYS_PTRACE only the user itself sees what its processes hold."""
    port = free_port()
    serve = ["/usr/bin/python3", "-c", SERVE, port]
    process = background(serve, ready=answers(port), user="nobody", group="nogroup")
    (inode,) = sockets = inspect_host.listeners({port})
    number = str(sockets[inode][1])
    assert inspect_host.sockets_of(number, sockets) == {inode: [process.pid]}
    assert inspect_host.status(process.pid, "Uid")[0] == number
    environment = inspect_host.as_owner(process.pid, "cat", f"/proc/{process.pid}/environ")
    assert "PATH=" in environment


def test_sources_are_asked_at_once(look, hub, free_port):
    start = time.monotonic()
    sources = look(
        timeout=0.7,
        sources={
            "good": hub + "/good",
            "none": hub + "/none/",
            "broken": hub + "/broken",
            "slow": hub + "/slow/1",
            "slower": hub + "/slow/2",
            "ollama": hub + "/registry",
            "closed": f"http://127.0.0.1:{free_port()}",
            "nonsense": "hub",
        },
    )["sources"]
    assert time.monotonic() - start < 2.5
    answers = {name for name, source in sources.items() if source["answers"]}
    assert answers == {"good", "none", "ollama"}
    assert sources["good"] == {"url": hub + "/good", "answers": True, "error": None}
    assert sources["broken"]["error"] == "HTTP 503"
    assert "timed out" in sources["slow"]["error"]
    assert "refused" in sources["closed"]["error"]
    assert "unknown url type" in sources["nonsense"]["error"]


def test_only_complete_models_are_present(look, tmp_path):
    write(tmp_path / "models/tiny-r1/q4_k_m/.complete", "{}")
    write(tmp_path / "models/deepseek-r1-7b/awq/model.safetensors.incomplete", "")
    seen = look(data_path=str(tmp_path))
    assert seen["models_present"] == ["tiny-r1/q4_k_m"]
    assert seen["ollama_owner"] is None
    (tmp_path / "ollama").mkdir()
    assert look(data_path=str(tmp_path))["ollama_owner"] == os.getuid()


def test_packages_and_users(look):
    seen = look(packages=["bash", "no-such-package"], own_users="root")
    assert seen["packages_missing"] == ["no-such-package"]
    assert "root" in seen["users"]["root"]
    assert seen["uids"]["root"] == {"uid": 0, "gid": 0}
    assert look()["packages_missing"] == []


@pytest.mark.parametrize(
    ("text", "manager"),
    [
        ("#!/bin/sh\n# manager: systemd\n# Written by Ansible\n", "systemd"),
        ("#!/bin/sh\n# Written by Ansible; a change by hand is lost\n", "supervisor"),
        (None, ""),
    ],
)
def test_what_was_left_in_charge(look, tmp_path, text, manager):
    if text:
        write(tmp_path / "deepseek-r1", text)
    assert look(command=str(tmp_path / "deepseek-r1"))["manager"] == manager


def test_docker(look):
    docker = look()["docker"]
    assert docker["installed"] == bool(shutil.which("docker"))
    if not docker["installed"]:
        assert docker == {"installed": False, "running": False, "version": None, "compose": None}
    elif docker["running"]:
        assert re.match(r"\d+\.\d+", docker["version"])


def test_ports_of_containers(inspect_host, monkeypatch):
    """As Docker 26 writes them; tests/stack asks a real one."""
    labels = "a=b,com.docker.compose.project=deepseek-r1,c=d"
    rows = [
        {"Names": "deepseek-r1-gateway-1", "Labels": labels, "Ports": "0.0.0.0:8080->8080/tcp"},
        {"Names": "shop", "Labels": "", "Ports": "[::]:80-81->80-81/tcp, 53/udp, :::53->53/udp"},
        {"Names": "idle", "Labels": "", "Ports": ""},
    ]
    said = "\n".join(json.dumps(row) for row in rows)
    monkeypatch.setattr(inspect_host, "ask_docker", lambda *_: said)
    found = inspect_host.published("deepseek-r1")
    assert found == {
        8080: ("deepseek-r1-gateway-1", True),
        80: ("shop", False),
        81: ("shop", False),
    }
    free = inspect_host.holders({80, 9999}, [], "r1-", {80: ("shop", False)})["80"]
    assert (free["container"], free["ours"]) == ("shop", False)


NGINX = "daemon off; pid {0}/pid; error_log stderr; events {{}} http {{ server {{ listen {1}; }} }}"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def foreign_of(seen, process):
    return [one for one in seen["foreign"] if one["pid"] == process.pid]


@needs_root
def test_a_foreign_nginx_and_redis(look, background, free_port, tmp_path):
    port, other = free_port(), free_port()
    (tmp_path / "nginx.conf").write_text(NGINX.format(tmp_path, port))
    nginx = background(["/usr/sbin/nginx", "-c", tmp_path / "nginx.conf"], ready=answers(port))
    redis = background(
        ["redis-server", "--port", other, "--save", "", "--dir", tmp_path], ready=answers(other)
    )
    seen = look()
    (found,) = foreign_of(seen, nginx)
    assert (found["name"], found["ports"], found["unit"]) == ("nginx", [port], None)
    assert (found["user"], str(tmp_path) in found["cmdline"]) == ("root", True)
    (found,) = foreign_of(seen, redis)
    assert (found["name"], found["ports"]) == ("redis-server", [other])
    seen = look(own_paths=[str(tmp_path)])
    assert foreign_of(seen, nginx) == [], "known as ours by its configuration"
    assert foreign_of(look(own_users="root"), nginx) == [], "known as ours by its user"


@needs_root
def test_servers_in_containers_are_not_foreign(look, background, free_port, tmp_path):
    port = free_port()
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    background(
        [*inside, "redis-server", "--port", port, "--save", "", "--dir", tmp_path],
        ready=answers(port),
    )
    assert [one for one in look()["foreign"] if port in one["ports"]] == []


def test_a_redis_that_is_to_be_adopted(look, background, free_port, tmp_path):
    port, plain = free_port(), free_port()
    sock = tmp_path / "redis.sock"
    server = ["redis-server", "--save", "", "--dir", tmp_path]
    background(
        [*server, "--port", plain, "--unixsocket", sock, "--unixsocketperm", "700"],
        ready=lambda: answers(plain)() and sock.exists(),
    )
    background([*server, "--port", port, "--requirepass", "hush"], ready=answers(port))

    def asked(address):
        return look(adopt_redis=address)["adopted"]["redis"]["error"]

    assert asked(f"127.0.0.1:{plain}") is None
    assert asked(f"127.0.0.1:{port}").startswith("it answers -NOAUTH")
    assert "cannot be reached" in asked(f"127.0.0.1:{free_port()}")
    assert asked(f"unix:{sock}") == "user r1-gateway may not open it"
    sock.chmod(0o777)
    assert asked(f"unix:{sock}") is None
    assert look()["adopted"] == {"ollama": None, "redis": None}


def test_an_ollama_that_is_not_there(look, free_port):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        found = look(ports=[port], adopt_ollama=port)["adopted"]["ollama"]
    assert found["error"] == "no Ollama of this host holds the port"
    assert look(adopt_ollama=str(free_port()))["adopted"]["ollama"]["version"] is None


def answers(port):
    def probe():
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", int(port))) == 0

    return probe


APT = """\
Remv nginx-common [1.22.1-9] [nginx:amd64 ]
Inst libc6 [2.36-9+deb12u4] (2.36-9+deb12u10 Debian:12.9/stable [amd64])
Inst redis-tools [5:7.0.15-1~deb12u10] (5:7.0.15-1~deb12u7 Debian:12.15/oldstable [amd64]) []
Inst haproxy (2.6.12-1+deb12u2 Debian:12.9/stable [amd64])
Conf libc6 (2.36-9+deb12u10 Debian:12.9/stable [amd64])
"""


@pytest.mark.skipif(not shutil.which("dpkg"), reason="needs dpkg")
def test_what_apt_would_do_is_read(inspect_host):
    found = inspect_host.disturbed(APT, inspect_host.older)
    assert [(one["name"], one["action"]) for one in found] == [
        ("nginx-common", "removed"),
        ("libc6", "upgraded"),
        ("redis-tools", "downgraded"),
    ]
    assert (found[1]["old"], found[1]["new"]) == ("2.36-9+deb12u4", "2.36-9+deb12u10")


def test_what_apt_cannot_do_is_read(inspect_host):
    said = (
        "The following packages have unmet dependencies:\n"
        " libnginx-mod-http-lua : Depends: nginx-abi-1.22.1-7 but it is not installable\n"
    )
    end = "E: Unable to correct problems, you have held broken packages.\n"
    assert inspect_host.conflicts(said + end) == [
        "libnginx-mod-http-lua : Depends: nginx-abi-1.22.1-7 but it is not installable"
    ]
    torn = "E: Unmet dependencies. Try 'apt --fix-broken install' with no packages.\n"
    assert inspect_host.conflicts(said + torn) == [], "a killed run's, healed by the next"
    assert inspect_host.conflicts("E: Unable to locate package nginx\n") == []


CPUINFO = """\
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: {model}
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu avx2 avx512_vnni
"""
# An instruction that no processor has, in place of the one that is tried.
REFUSED = ("c4e27150c2c3", "0f0bc3")


@pytest.mark.parametrize(
    ("model", "program", "found"),
    [
        ("207", lambda text: "pass", True),
        ("207", lambda text: text.replace(*REFUSED), False),
        ("85", lambda text: "pass", False),  # it never had it, whatever the program does
    ],
)
def test_what_a_cloud_hides_is_tried(inspect_host, monkeypatch, model, program, found):
    read = inspect_host.read
    info = CPUINFO.format(model=model)
    monkeypatch.setattr(
        inspect_host, "read", lambda path, *rest: info if path == "/proc/cpuinfo" else
        read(path, *rest)
    )  # fmt: skip
    monkeypatch.setattr(inspect_host, "USE_AVX_VNNI", program(inspect_host.USE_AVX_VNNI))
    assert ("avx_vnni" in inspect_host.processor()["flags"]) is found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instruction is x86's")
def test_the_instruction_that_is_tried_is_the_processors(inspect_host):
    """Where the flag is told, the program runs; else nothing is known."""
    flags = Path("/proc/cpuinfo").read_text()
    if "avx_vnni" not in flags.split():
        pytest.skip("this processor does not tell that it has AVX-VNNI")
    assert inspect_host.runs(inspect_host.USE_AVX_VNNI)
