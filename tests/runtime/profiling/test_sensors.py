"""Sensors of a made-up Jetson, in the forms that owners of such devices publish."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from time import perf_counter, sleep

import pytest

from atp_runtime.profiling.sensor_log import SensorLog
from atp_runtime.profiling.sensors import (
    CELSIUS,
    MEGAHERTZ,
    STATE,
    WATTS,
    Sensor,
    find_sensors,
    total_rail,
)

FILES = {
    "sys/class/hwmon/hwmon1/name": "ina3221",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon1/in1_input": "4976\n",
    "sys/class/hwmon/hwmon1/curr1_input": "2000\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "4976\n",
    "sys/class/hwmon/hwmon1/curr2_input": "1000\n",
    "sys/class/hwmon/hwmon1/in7_label": "Sum of shunt voltages\n",
    "sys/class/hwmon/hwmon1/in7_input": "80\n",
    "sys/class/hwmon/hwmon0/name": "nvme",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51250\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "1020000000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1728000\n",
}


@pytest.fixture
def board(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_a_board_s_sensors_are_found_by_their_own_names(board: Path) -> None:
    found = {(it.name, it.unit): it.read() for it in find_sensors(board)}
    assert found == {
        ("VDD_IN", WATTS): pytest.approx(9.952),
        ("VDD_CPU_GPU_CV", WATTS): pytest.approx(4.976),
        ("cpu-thermal", CELSIUS): pytest.approx(51.25),
        ("GPU", MEGAHERTZ): pytest.approx(1020),
        ("CPU 0", MEGAHERTZ): pytest.approx(1728),
        ("pwm-fan", STATE): 0,
    }


def test_the_rail_of_the_whole_module_is_known(board: Path) -> None:
    total = total_rail(find_sensors(board))
    assert total is not None
    assert total.name == "VDD_IN"
    assert total_rail([it for it in find_sensors(board) if it.unit != WATTS]) is None


def test_a_machine_without_sensors_has_none(tmp_path: Path) -> None:
    assert find_sensors(tmp_path) == ()
    with SensorLog(()) as log:
        pass
    assert log.rows() == ()
    assert log.joules([(0.0, 1.0)]) is None


def test_values_are_told_by_least_mean_and_most() -> None:
    values = count(10)
    with SensorLog([Sensor("VDD_IN", WATTS, lambda: float(next(values)))], pause=0.001) as log:
        sleep(0.05)
    (row,) = log.rows()
    assert row.least == 10
    assert row.most == next(values) - 1
    assert row.mean == pytest.approx((row.least + row.most) / 2)
    assert row.problem is None


def test_an_answer_s_energy_is_power_by_time() -> None:
    watts = 5.0
    with SensorLog([Sensor("VDD_IN", WATTS, lambda: watts)], pause=0.001) as log:
        spans = []
        for power in (5.0, 15.0):
            watts = power
            began = perf_counter()
            sleep(0.03)
            spans.append((began, perf_counter()))
    seconds = [ended - began for began, ended in spans]
    assert log.joules(spans[:1]) == pytest.approx(5 * seconds[0], rel=0.05)
    expected = (5 * seconds[0] + 15 * seconds[1]) / 2
    assert log.joules(spans) == pytest.approx(expected, rel=0.05)
    assert log.joules([(0.0, 1e-9)]) is None, "nothing was read then"


def test_a_broken_sensor_is_told_and_stops_nothing(board: Path) -> None:
    (board / "sys/class/thermal/thermal_zone0/temp").unlink()
    (board / "sys/class/devfreq/17000000.gpu/cur_freq").write_text("busy")
    with SensorLog(find_sensors(board), pause=0.001) as log:
        sleep(0.01)
    rows = {row.name: row for row in log.rows()}
    assert rows["cpu-thermal"].mean is None
    assert "thermal_zone0" in (rows["cpu-thermal"].problem or "")
    assert "busy" in (rows["GPU"].problem or "")
    assert rows["VDD_IN"].mean == pytest.approx(9.952)


def test_cooling_is_told_only_where_it_set_in(board: Path) -> None:
    with SensorLog(find_sensors(board), pause=0.001) as log:
        pass
    assert "pwm-fan" not in {row.name for row in log.rows()}
    (board / "sys/class/thermal/cooling_device0/cur_state").write_text("2")
    with SensorLog(find_sensors(board), pause=0.001) as log:
        pass
    assert "pwm-fan" in {row.name for row in log.rows()}
