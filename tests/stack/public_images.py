"""Stand-ins for the public images, since tests reach no public registry.

Each has what its original has where the project looks for it, and lacks what its original lacks:
paths of programs, entry point, curl or no curl. The programs are real; only OpenResty's nginx is
Debian's nginx, told to load the modules that the original has built in.
"""

import shutil
import tempfile
from pathlib import Path

from hosts import image, registry
from hosts.shell import run

NGINX = """\
#!/bin/sh
modules="load_module /usr/lib/nginx/modules/ndk_http_module.so;
load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;"
for part; do
  shift
  [ "${before:-}" != -g ] || part="$modules $part"
  set -- "$@" "$part"
  before=$part
done
exec /usr/sbin/nginx "$@"
"""
PLAIN = image.Recipe(  # no curl
    name="public-plain",
    suite="bookworm",
    packages=("ca-certificates", "libnginx-mod-http-lua", "lua-cjson", "nginx", "redis-server"),
    files=(("/usr/local/openresty/nginx/sbin/nginx", NGINX),),
    hooks=('mv "$1"/usr/bin/redis-* "$1"/usr/local/bin/',),
)
WITH_CURL = image.Recipe(
    name="public-curl",
    suite="bookworm",
    packages=("ca-certificates", "curl", "libgomp1", "libstdc++6"),
)


def redis(name: str, remark: str = "") -> str:
    """Another remark makes another image."""
    return publish(PLAIN, name, f'LABEL remark="{remark}"')


def openresty(name: str) -> str:
    return publish(PLAIN, name, "")


def ollama(name: str, program: Path) -> str:
    lines = 'COPY ollama /bin/ollama\nENTRYPOINT ["/bin/ollama"]'
    return publish(PLAIN, name, lines, (program, "ollama"))


def llamacpp(name: str, program: Path) -> str:
    """The folder of the program has its libraries, too, as the original's."""
    lines = 'COPY app /app\nWORKDIR /app\nENTRYPOINT ["/app/llama-server"]'
    return publish(WITH_CURL, name, lines, (program.parent, "app"))


def publish(recipe: image.Recipe, name: str, lines: str, *files: tuple[Path, str]) -> str:
    """Push the recipe's image, with these lines of a Dockerfile, under this name; its digest."""
    tag = f"{image.REPOSITORY}/{recipe.name}:published"
    with tempfile.TemporaryDirectory() as folder:
        for source, target in files:
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, Path(folder) / target)
        (Path(folder) / "Dockerfile").write_text(f"FROM {image.ensure(recipe)}\n{lines}\n")
        run("docker", "build", "--quiet", "--tag", tag, folder)
    try:
        return registry.push(tag, name).partition("@")[2]
    finally:
        run("docker", "rmi", tag, check=False)
