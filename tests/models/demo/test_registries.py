import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from atp_models.demo import registries
from atp_models.demo.parts import Part
from atp_models.demo.registries import download
from atp_runtime.errors import MachineError

MakePart = Callable[..., Part]
NOBODY = "http://127.0.0.1:9"


@dataclass
class Registry:
    """What stands where npm's public registry is: files served as its tarballs are."""

    folder: Path
    url: str
    requested: list[str] = field(default_factory=list)

    def publish(self, path: str, archive: Path) -> None:
        place = self.folder / path
        place.parent.mkdir(parents=True)
        shutil.copyfile(archive, place)


class Handler(SimpleHTTPRequestHandler):
    lie_about_length = 0

    def __init__(self, *args, requested: list[str], **kwargs) -> None:
        self.requested = requested
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self.requested.append(self.path)
        super().do_GET()

    def send_header(self, keyword: str, value: str) -> None:
        if keyword == "Content-Length":
            value = str(int(value) + self.lie_about_length)
        super().send_header(keyword, value)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    folder = tmp_path / "registry"
    folder.mkdir()
    requested: list[str] = []
    handler = partial(Handler, directory=str(folder), requested=requested)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(registries, "NPM_REGISTRY", url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield Registry(folder, url, requested)
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `npm` that notes how it was called and copies the archive it is told to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "npm"
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$@" > {folder}/called\n'
        'if [ -n "$NPM_COMPLAINT" ]; then printf "$NPM_COMPLAINT" >&2; exit 1; fi\n'
        'cp "$NPM_GIVES" "$4"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "called"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def get(part: Part, scratch: Path, report: Callable[[str], None] = lambda line: None) -> Path:
    return download(part, scratch, cache_dir=scratch.parent / "cache", report=report)


def tarball(make_tarball: MakePart, directory: Path, package: str, size: int = 10) -> Part:
    folder = directory / "source"
    folder.mkdir()
    return make_tarball(folder, package, {"data.bin": os.urandom(size)})


def test_tarball_comes_through_npm_when_it_is_installed(
    npm: Path, registry: Registry, scratch: Path, make_tarball: MakePart, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    part = tarball(make_tarball, tmp_path, "@somebody/tiny-art")
    monkeypatch.setenv("NPM_GIVES", str(tmp_path / "source" / part.archive))
    archive = get(part, scratch)
    assert archive == scratch / part.archive
    assert archive.read_bytes() == (tmp_path / "source" / part.archive).read_bytes()
    assert npm.read_text().startswith("pack @somebody/tiny-art@1.0.0 ")
    assert registry.requested == []


@pytest.mark.parametrize(
    ("complaint", "reason"),
    [
        ("npm error code ENOTFOUND\nnpm error network request failed\n", "no package registry"),
        ("npm ERR! code ECONNREFUSED\nnpm ERR! errno\n", "no package registry answered"),
        ("npm error code E404\nnpm error 404 Not Found - GET x\nnpm error 404\n", "404 Not Found"),
        ("npm error code ETARGET\nnpm error notarget No matching version\n", "No matching"),
        ("Killed\n", "npm gave no reason"),
    ],
)
def test_npms_complaint_becomes_the_reason(
    npm: Path, scratch: Path, make_tarball: MakePart, tmp_path: Path, complaint: str, reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    part = tarball(make_tarball, tmp_path, "tiny-art")
    monkeypatch.setenv("NPM_COMPLAINT", complaint)
    with pytest.raises(MachineError) as caught:
        get(part, scratch)
    assert reason in caught.value.why
    assert part.archive in caught.value.fix


def test_an_npm_that_gives_another_file_is_not_believed(
    npm: Path, scratch: Path, make_tarball: MakePart, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    part = tarball(make_tarball, tmp_path, "tiny-art")
    other = tmp_path / "other.tgz"
    other.touch()
    monkeypatch.setenv("NPM_GIVES", str(other))
    with pytest.raises(MachineError) as caught:
        get(part, scratch)
    assert caught.value.why == f"the registry gave no {part.archive}"


@pytest.mark.parametrize(
    ("package", "path"),
    [
        ("tiny-art", "tiny-art/-/tiny-art-1.0.0.tgz"),
        ("@somebody/tiny-art", "@somebody/tiny-art/-/tiny-art-1.0.0.tgz"),
    ],
)
def test_tarball_comes_straight_from_the_registry_when_there_is_no_npm(
    no_npm: None, registry: Registry, scratch: Path, make_tarball: MakePart, tmp_path: Path,
    package: str, path: str,
) -> None:  # fmt: skip
    part = tarball(make_tarball, tmp_path, package)
    published = tmp_path / "source" / part.archive
    registry.publish(path, published)
    assert get(part, scratch).read_bytes() == published.read_bytes()
    assert registry.requested == [f"/{path}"]


def test_progress_rises_to_the_whole_when_there_is_no_npm(
    no_npm: None, registry: Registry, scratch: Path, make_tarball: MakePart, tmp_path: Path
) -> None:
    part = tarball(make_tarball, tmp_path, "tiny-art", size=5_000_000)
    registry.publish("tiny-art/-/tiny-art-1.0.0.tgz", tmp_path / "source" / part.archive)
    lines: list[str] = []
    get(part, scratch, lines.append)
    done = [int(line.split()[0]) for line in lines]
    assert done == sorted(done)
    assert len(done) >= 4
    assert lines[-1].strip() == "5 of 5 MB"


def test_a_package_the_registry_has_not_is_named_with_its_address(
    no_npm: None, registry: Registry, scratch: Path, make_tarball: MakePart, tmp_path: Path
) -> None:
    part = tarball(make_tarball, tmp_path, "tiny-art")
    with pytest.raises(MachineError, match=r"tiny-art 1\.0\.0") as caught:
        get(part, scratch)
    assert f"{registry.url}/tiny-art/-/tiny-art-1.0.0.tgz answers 404" in caught.value.why


def test_half_a_tarball_is_refused(
    no_npm: None, registry: Registry, scratch: Path, make_tarball: MakePart, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    part = tarball(make_tarball, tmp_path, "tiny-art")
    registry.publish("tiny-art/-/tiny-art-1.0.0.tgz", tmp_path / "source" / part.archive)
    monkeypatch.setattr(Handler, "lie_about_length", 100)
    with pytest.raises(MachineError) as caught:
        get(part, scratch)
    assert "ended after" in caught.value.why


def test_no_registry_answers_when_there_is_neither_npm_nor_a_network(
    no_npm: None, scratch: Path, make_tarball: MakePart, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(registries, "NPM_REGISTRY", NOBODY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(MachineError) as caught:
        get(tarball(make_tarball, tmp_path, "tiny-art"), scratch)
    assert caught.value.why.startswith("no package registry answered")


def test_no_index_answers_when_pip_has_no_network(
    scratch: Path, make_wheel: MakePart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = make_wheel(tmp_path, "tiny-part", "tiny/file.bin", b"content")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"{NOBODY}/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(MachineError) as caught:
        get(part, scratch)
    assert caught.value.why == "no package registry answered"
