"""What the doctor says of a machine: two Jetsons, a machine that is none, and broken ones."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import pytest
from tests.export.doctor.devices import rewrite, without_gpu

from atp_export.doctor import Finding, System, examine, print_findings

GPU_CLOCK = "sys/class/devfreq/17000000.gpu"
CPU_CLOCK = "sys/devices/system/cpu/cpufreq/policy0"


def finding(system: System, subject: str) -> Finding:
    findings = examine(system, Path.cwd())
    return next(it for it in findings if it.subject.partition(" (")[0] == subject)


def told(system: System) -> dict[str, str]:
    return {it.subject: it.found for it in examine(system, Path.cwd())}


def test_an_orin_nano_is_told_in_full(orin_nano: System) -> None:
    found = told(orin_nano)
    assert found["Jetson"] == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert found["JetPack"] == "6.2+b77, L4T R36.4.3"
    assert found["TensorRT"] == "Python module 10.3.0, library 10.3.0"
    assert found["CUDA"] == "12.6 served by the driver, toolkit 12.6.11"
    assert found["GPU"] == "Orin (SM 8.7)"
    assert found["power mode"] == (
        "25W (1); there are 15W (0), MAXN_SUPER (2), 7W (3): sudo nvpmodel -m NUMBER"
    )
    assert found["GPU clock"] == "306 MHz now, 306 to 1020 MHz allowed"
    assert found["CPU clocks"] == (
        "1344 MHz now, 730 to 1344 MHz allowed; 730 MHz now, 730 to 1344 MHz allowed; cores 0-5"
    )
    assert found["memory clock"] == "can only be told as root, the power mode allows 3199 MHz"
    assert found["jetson_clocks"].startswith("off")
    assert found["memory"] == "5.7 GB of 8.0 GB available, shared by CPU and GPU"
    assert found["swap"] == "/swapfile (file) 8.6 GB, zram, which is compressed memory, 4.0 GB"


def test_an_agx_orin_is_told_in_full(agx_orin: System) -> None:
    found = told(agx_orin)
    assert found["JetPack"] == "7.2-b187, L4T R39.2.0"
    assert found["TensorRT"] == "Python module 10.16.1.11, library 10.16.1"
    assert found["CUDA"] == "13.2 served by the driver, toolkit 13.2.1"
    assert found["power mode"].startswith("MAXN (0); there are MODE_30W (2)")
    assert found["GPU clock"] == "1300 MHz now, 1300 to 1300 MHz allowed"
    assert found["memory clock"] == "3199 MHz now, 3199 MHz at most"
    assert found["jetson_clocks"] == "on: GPU and CPU have no range left, the memory is locked"
    assert found["swap"] == "none"


def test_a_machine_that_is_no_jetson_is_not_asked_for_its_power_mode(tmp_path: Path) -> None:
    found = told(System(root=tmp_path))
    assert found["Jetson"] == "no"
    assert not {"JetPack", "power mode", "jetson_clocks"} & found.keys()


def test_another_board_with_a_device_tree_is_no_jetson(orin_nano: System) -> None:
    rewrite(orin_nano, "proc/device-tree/compatible", "raspberrypi,5-model-b\0brcm,bcm2712\0")
    assert told(orin_nano)["Jetson"] == "no"


def test_this_machine_is_told_too() -> None:
    found = told(System())
    assert found["Python"] == platform.python_version()
    assert found["machine"].startswith("Linux ")
    assert " GB available" in found["memory"]
    assert " GB free in " in found["disk"]


# What is not as it should be


@pytest.mark.parametrize(
    ("subject", "missing"),
    [
        ("JetPack", "etc/nv_tegra_release"),
        ("JetPack", "var/lib/dpkg/status"),
        ("GPU clock", f"{GPU_CLOCK}/cur_freq"),
        ("CPU clocks", f"{CPU_CLOCK}/scaling_min_freq"),
        ("jetson_clocks", f"{CPU_CLOCK}/scaling_min_freq"),
        ("memory", "proc/meminfo"),
        ("swap", "proc/swaps"),
    ],
)
def test_a_probe_that_fails_says_so_and_the_others_are_told(
    orin_nano: System, subject: str, missing: str
) -> None:
    subjects = list(told(orin_nano))
    (orin_nano.root / missing).unlink()
    found = finding(orin_nano, subject)
    assert found.ok is None
    assert found.found.startswith("cannot be told: ")
    assert Path(missing).name in found.found
    assert list(told(orin_nano)) == subjects


@pytest.mark.parametrize(
    ("subject", "file", "text"),
    [
        ("JetPack", "etc/nv_tegra_release", "something else"),
        ("GPU clock", f"{GPU_CLOCK}/max_freq", "<unsupported>"),
        ("CUDA", "usr/local/cuda/version.json", "{}"),
        ("CUDA", "usr/local/cuda/version.json", "not JSON"),
        ("memory", "proc/meminfo", "MemTotal: much kB"),
        ("memory", "proc/meminfo", "MemTotal: 100 kB"),
        ("swap", "proc/swaps", "Filename Type Size\n/swapfile file\n"),
    ],
)
def test_a_file_of_unknown_form_is_a_finding(
    orin_nano: System, subject: str, file: str, text: str
) -> None:
    rewrite(orin_nano, file, text)
    assert finding(orin_nano, subject).ok is None


def test_a_gpu_that_devfreq_does_not_list_is_a_finding(orin_nano: System) -> None:
    (orin_nano.root / GPU_CLOCK).rename(orin_nano.root / "elsewhere")
    assert finding(orin_nano, "GPU clock").ok is None


def test_the_power_mode_is_read_from_its_file_where_nvpmodel_does_not_answer(
    orin_nano: System,
) -> None:
    def refused(*words: str) -> str:
        raise OSError("nvpmodel: permission denied")

    assert told(replace(orin_nano, run=refused))["power mode"].startswith("25W (1); there are")
    rewrite(orin_nano, "var/lib/nvpmodel/status", "")
    assert finding(replace(orin_nano, run=refused), "power mode").ok is None


def test_words_of_nvpmodel_that_are_not_understood_are_quoted(orin_nano: System) -> None:
    found = finding(replace(orin_nano, run=lambda *_: "NVPM ERROR: no\n"), "power mode")
    assert (found.ok, found.found) == (None, "cannot be told: nvpmodel -q says 'NVPM ERROR: no'")


def test_the_power_mode_needs_no_list_of_modes(orin_nano: System) -> None:
    (orin_nano.root / "etc/nvpmodel.conf").unlink()
    assert told(orin_nano)["power mode"] == "25W (1)"


@pytest.mark.parametrize("fixed", [(GPU_CLOCK, "min_freq"), (CPU_CLOCK, "scaling_min_freq")])
def test_clocks_that_are_fixed_in_part_are_told_so(
    agx_orin: System, fixed: tuple[str, str]
) -> None:
    rewrite(agx_orin, "/".join(fixed), "115200")
    assert told(agx_orin)["jetson_clocks"].startswith("in part; off")


def test_fixed_clocks_with_a_free_memory_clock_are_told_so(agx_orin: System) -> None:
    rewrite(agx_orin, "sys/kernel/debug/bpmp/debug/clk/emc/mrq_rate_locked", "0\n")
    assert told(agx_orin)["jetson_clocks"].endswith("but the memory is not locked")


def test_jetpack_5_is_too_old(orin_nano: System) -> None:
    release = (orin_nano.root / "etc/nv_tegra_release").read_text()
    rewrite(orin_nano, "etc/nv_tegra_release", release.replace("R36", "R35"))
    found = finding(orin_nano, "JetPack")
    assert not found.ok
    assert "JetPack 6.1 or later" in found.fix


@pytest.mark.parametrize("status", ["deinstall ok config-files", None])
def test_a_missing_jetpack_package_is_told_beside_its_linux(
    orin_nano: System, status: str | None
) -> None:
    packages = (orin_nano.root / "var/lib/dpkg/status").read_text()
    if status:
        rewrite(orin_nano, "var/lib/dpkg/status", packages.replace("install ok installed", status))
    else:
        rewrite(orin_nano, "var/lib/dpkg/status", packages.replace("nvidia-jetpack\n", "other\n"))
    found = finding(orin_nano, "JetPack")
    assert found.found == "package nvidia-jetpack not installed, L4T R36.4.3"
    assert found.ok


# TensorRT and the GPU


def test_tensorrt_of_another_python_is_told_with_its_place(orin_nano: System) -> None:
    found = finding(replace(orin_nano, version=lambda _: None), "TensorRT")
    assert found.ok is False
    assert found.found == "Python module missing, library 10.3.0"
    module = orin_nano.root / "usr/lib/python3.10/dist-packages"
    if platform.python_version().startswith("3.10"):
        assert "--system-site-packages" in found.fix
    else:
        assert f"it is in {module}, for Python 3.10" in found.fix


def test_tensorrt_that_a_virtual_environment_does_not_see_is_told_so(agx_orin: System) -> None:
    version = ".".join(platform.python_version_tuple()[:2])
    module = agx_orin.root / f"usr/lib/python{version}/dist-packages/tensorrt"
    module.mkdir(parents=True)
    (module / "__init__.py").touch()
    found = finding(replace(agx_orin, version=lambda _: None), "TensorRT")
    assert "--system-site-packages" in found.fix


def test_tensorrt_that_is_nowhere_comes_with_jetpack(agx_orin: System) -> None:
    found = finding(replace(agx_orin, version=lambda _: None), "TensorRT")
    assert "sudo apt install nvidia-jetpack" in found.fix


def test_module_and_library_of_different_versions_are_refused(orin_nano: System) -> None:
    (orin_nano.root / "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.16.1").touch()
    assert finding(orin_nano, "TensorRT").ok is False


def test_a_jetson_whose_gpu_is_out_of_reach_is_told_of_containers(orin_nano: System) -> None:
    found = finding(without_gpu(orin_nano), "GPU")
    assert found.ok is False
    assert "--runtime nvidia" in found.fix
    assert told(without_gpu(orin_nano))["CUDA"] == "no driver, toolkit 12.6.11"


def test_a_machine_without_a_gpu_lacks_nothing(tmp_path: Path) -> None:
    system = without_gpu(System(root=tmp_path, version=lambda _: None))
    assert finding(system, "GPU").ok is None
    assert finding(system, "TensorRT").ok is None


# Packages


def test_a_missing_package_is_named_with_its_remedy() -> None:
    versions = {"polygraphy": "0.53.6"}
    found = finding(System(version=versions.get), "engines")
    assert not found.ok
    assert found.found == "polygraphy 0.53.6, rich missing"
    assert found.fix == "pip install polygraphy rich"


def test_a_device_needs_nothing_for_exporting(orin_nano: System) -> None:
    found = finding(orin_nano, "export")
    assert (found.ok, "torch missing" in found.found) == (None, True)
    assert "export elsewhere" in found.fix
    assert finding(replace(orin_nano, version=lambda _: "1"), "export").ok is True


# How it is printed


@pytest.mark.parametrize(("ok", "mark"), [(True, "✓"), (False, "✗"), (None, "?")])
def test_findings_are_lines_with_a_remedy_where_one_is_needed(
    ok: bool | None, mark: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_findings((Finding("disk", "10 GB [free]", ok, fix="free some"),))
    remedy = "" if ok else "    fix: free some\n"
    assert capsys.readouterr().out == f"{mark} disk: 10 GB [free]\n{remedy}"
