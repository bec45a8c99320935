"""Joules from the counters of a machine, where it has any."""

import pytest

from specexit.bench.energy import Counter, EnergyMeter


def write_zone(root, zone, name, joules, wraps_at=1000):
    folder = root / zone
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (folder / "max_energy_range_uj").write_text(f"{int(wraps_at * 1e6)}\n")


def test_packages_and_memory_count_and_their_parts_do_not_count_twice(tmp_path):
    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:1", "dram"), ("intel-rapl:0:0", "core")):
        write_zone(tmp_path, zone, name, 10)
    write_zone(tmp_path, "intel-rapl:1", "psys", 10)
    meter = EnergyMeter(root=tmp_path)
    before = meter.read()
    for zone, name, joules in (("intel-rapl:0", "package-0", 17), ("intel-rapl:0:1", "dram", 12)):
        write_zone(tmp_path, zone, name, joules)
    write_zone(tmp_path, "intel-rapl:0:0", "core", 900)
    assert meter.since(before) == pytest.approx(7 + 2)


def test_a_counter_that_began_again(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 990)
    meter = EnergyMeter(root=tmp_path)
    before = meter.read()
    write_zone(tmp_path, "intel-rapl:0", "package-0", 5)
    assert meter.since(before) == pytest.approx(15)


def test_cards_are_added(tmp_path):
    stands = iter([3.0, 50.0])
    meter = EnergyMeter(lambda: {"GPU-a": Counter(next(stands), None)}, tmp_path)
    assert meter.since(meter.read()) == pytest.approx(47)


def test_what_cannot_be_read_is_not_told(tmp_path):
    meter = EnergyMeter(root=tmp_path / "nowhere")
    assert meter.since(meter.read()) is None
    write_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    write_zone(tmp_path, "intel-rapl:1", "package-1", 1)
    meter = EnergyMeter(root=tmp_path)
    before = meter.read()
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("")  # one of two would be half the truth
    assert meter.since(before) is None


def test_neither_cards_nor_processors_are_told_for_both(tmp_path):
    """Whoever is not root sees the processors' counters, and cannot read them; a card in use may have none."""
    write_zone(tmp_path, "intel-rapl:0", "package-0", 10)
    meter = EnergyMeter(lambda: None, tmp_path)
    assert meter.since(meter.read()) is None
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    stands = iter([3.0, 50.0])
    meter = EnergyMeter(lambda: {"GPU-a": Counter(next(stands), None)}, tmp_path)
    assert meter.since(meter.read()) is None
