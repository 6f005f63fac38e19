"""STAND-INS for NVIDIA's two apt repositories, which tests do not reach.

Real are their layout (flat, the key beside the packages), the packages' names and how they depend
on each other and on Debian's contrib, the signature by a key made for the test, and the program
nvidia-ctk, built from its source. STAND-INS are what the driver's packages hold: a module that is
only a version, which `modprobe nvidia` notes down instead of loading it; a nvidia-smi that answers
with the recorded report where that version is its own; a management library that knows one card.
"""

import shutil
from pathlib import Path

import apt_repository
from hosts.go import go_program
from hosts.shell import run

DATA = Path(__file__).parents[1] / "unit/data"
RECORDED, NEWER = "580.159.04", "590.48.01"
TOOLKIT, CTK = "1.20.1", "github.com/NVIDIA/nvidia-container-toolkit/cmd/nvidia-ctk"

LIBRARIES = "usr/lib/x86_64-linux-gnu"
DEPENDS = {
    "nvidia-open": "nvidia-driver-cuda (= {v}), nvidia-kernel-open-dkms (= {v})",
    "cuda-drivers": "nvidia-driver-cuda (= {v}), nvidia-kernel-dkms (= {v})",
    "nvidia-driver-cuda": "libcuda1 (= {v}), libnvidia-ml1 (= {v}), libnvcuvid1 (= {v}),"
    " nvidia-installer-cleanup",
    "nvidia-kernel-open-dkms": "kmod",
    "nvidia-kernel-dkms": "kmod",
    "nvidia-persistenced": "",
    "libcuda1": "",
    "libnvcuvid1": "libcuda1 (= {v})",
    "libnvidia-ml1": "",
}

# "Runs" from `modprobe nvidia`, or from the boot, until the next one. A module that runs stays.
LOAD = """#!/bin/sh
grep -q " /proc/driver " /proc/mounts && exit 0
mount -t tmpfs stand-in /proc/driver && mkdir /proc/driver/nvidia
version="NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build"
echo "$version" >/proc/driver/nvidia/version
mknod -m 666 /dev/nvidia0 c 195 0
mknod -m 666 /dev/nvidiactl c 195 255
exit 0
"""
AT_BOOT = """[Unit]
Description=Stand-in of the driver's module
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/nvidia-stand-in/load
"""
SMI = """#!/bin/sh
grep -qs " {version} " /proc/driver/nvidia/version || {{
  echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."; exit 9
}}
case "$*" in
*compute_cap*) echo "0, 9.0" ;;
-q*) cat /usr/lib/nvidia-stand-in/report.xml ;;
*) echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-00000000-0000-0000-0000-000000000000)" ;;
esac
"""
PERSISTENCED = """[Unit]
Description=Stand-in of the persistence daemon
[Service]
ExecStart=/usr/bin/sleep infinity
[Install]
WantedBy=multi-user.target
"""
MODULE = 'const char version[] __attribute__((section(".modinfo"))) = "version={version}";\n'
# As much of the library as nvidia-ctk asks; 3 is "not supported".
LIBRARY = r"""
#include <string.h>
struct pci { char old[16]; unsigned domain, bus, device, id, subsystem; char text[32]; };
static int text(char *to, const char *what) { strcpy(to, what); return 0; }
int nvmlInit(void) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *to) { return text(to, "VERSION"); }
int nvmlDeviceGetCount(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex(unsigned i, void **card) { *card = &text; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **card) { *card = &text; return 0; }
int nvmlDeviceGetHandleByUUID(const char *id, void **card) { *card = &text; return 0; }
int nvmlDeviceGetName(void *card, char *to) { return text(to, "NVIDIA H100 80GB HBM3"); }
int nvmlDeviceGetMinorNumber(void *card, unsigned *n) { *n = 0; return 0; }
int nvmlDeviceGetUUID(void *card, char *to) {
  return text(to, "GPU-00000000-0000-0000-0000-000000000000");
}
int nvmlDeviceGetMigMode(void *card, unsigned *now, unsigned *next) { return 3; }
int nvmlDeviceGetMaxMigDeviceCount(void *card, unsigned *n) { *n = 0; return 0; }
int nvmlDeviceGetPciInfo(void *card, struct pci *to) {
  memset(to, 0, sizeof *to);
  to->bus = 1;
  return text(to->text, "00000000:01:00.0");
}
int nvmlDeviceGetPciInfo_v3(void *card, struct pci *to) { return nvmlDeviceGetPciInfo(card, to); }
"""


class Repositories:
    """Both, in one folder: cuda/SYSTEM/x86_64 and toolkit/stable/deb/amd64."""

    def __init__(self, folder: Path, work: Path, system: str, key_file: str, kernel: str):
        self.key = apt_repository.Key(work / "gnupg")
        self.work = work
        self.driver = folder / "cuda" / system / "x86_64"
        files = []
        for version in (RECORDED, NEWER):
            contents = driver_files(work, version, kernel)
            for name, depends in DEPENDS.items():
                depends = depends.format(v=f"{version}-1")
                tree = contents.get(name, {})
                files.append(self.package(self.driver, name, f"{version}-1", depends, tree))
        self.publish(self.driver, files)
        (self.driver / key_file).write_text(self.key.public)

        self.toolkit = folder / "toolkit/stable/deb/amd64"
        base = "nvidia-container-toolkit-base"
        program = {"usr/bin/nvidia-ctk": go_program(f"{CTK}@v{TOOLKIT}")}
        depends = f"{base} (= {TOOLKIT}-1)"
        name = "nvidia-container-toolkit"
        files = [
            self.package(self.toolkit, base, f"{TOOLKIT}-1", "", program),
            self.package(self.toolkit, name, f"{TOOLKIT}-1", depends, {}),
        ]
        self.publish(self.toolkit, files)
        (folder / "toolkit/gpgkey").write_text(self.key.public)

    def publish(self, folder: Path, files: list[Path]) -> None:
        apt_repository.publish(folder, folder, folder, files, self.key, "Origin: NVIDIA")

    def package(self, folder: Path, name, version, depends, contents) -> Path:
        tree = self.work / f"{name}_{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN/control").write_text(
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
            "Maintainer: nobody <nobody@example.org>\n"
            + (f"Depends: {depends}\n" if depends else "")
            + "Description: STAND-IN for a test\n"
        )
        for path, content in contents.items():
            file = tree / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copy(content, file)
            else:
                file.write_text(content)
                file.chmod(0o755 if content.startswith("#!") else 0o644)
        file = folder / f"{name}_{version}_amd64.deb"
        apt_repository.build(tree, file)
        return file


def driver_files(work: Path, version: str, kernel: str) -> dict[str, dict]:
    report = (DATA / "nvidia-smi-h100.xml").read_text().replace(RECORDED, version)
    module, library = work / f"module-{version}", work / f"library-{version}"
    compiled(module, MODULE.format(version=version), "-c")
    compiled(library, LIBRARY.replace("VERSION", version), "-shared", "-fPIC",
             "-Wl,-soname,libnvidia-ml.so.1")  # fmt: skip
    kernel_package = {
        f"lib/modules/{kernel}/updates/dkms/nvidia.ko": module,
        "usr/lib/nvidia-stand-in/load": LOAD.format(version=version),
        "usr/lib/modprobe.d/nvidia-stand-in.conf": "install nvidia /usr/lib/nvidia-stand-in/load\n",
        "usr/lib/systemd/system/nvidia-stand-in.service": AT_BOOT,
        "usr/lib/systemd/system/multi-user.target.d/nvidia-stand-in.conf":
            "[Unit]\nWants=nvidia-stand-in.service\n",
    }  # fmt: skip
    unit = "usr/lib/systemd/system/nvidia-persistenced.service"
    return {
        "nvidia-kernel-open-dkms": kernel_package,
        "nvidia-kernel-dkms": kernel_package,
        "nvidia-driver-cuda": {
            "usr/bin/nvidia-smi": SMI.format(version=version),
            "usr/lib/nvidia-stand-in/report.xml": report,
        },
        "nvidia-persistenced": {unit: PERSISTENCED},
        "libnvidia-ml1": {
            f"{LIBRARIES}/libnvidia-ml.so.{version}": library,
            "DEBIAN/postinst": "#!/bin/sh\nldconfig\n",
        },
    }


def compiled(file: Path, text: str, *options: str) -> None:
    run("cc", "-w", "-x", "c", *options, "-o", file, "-", input=text)
