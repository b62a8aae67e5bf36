"""examples/nginx/service-drop-in.conf under a real systemd."""

from __future__ import annotations

from pathlib import Path

import pytest
from mounts import wait_until
from systemd_machine import systemd_machine, why_there_is_no_machine

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/nginx/service-drop-in.conf"
# Ordered as the real ones are.  Starts only with the file that nginx is to read.
DAEMON = """[Unit]
Before=nginx.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'cat /run/latentfs-daemon-start.map >>/run/starts'
"""
WEB_SERVER = """[Service]
ExecStart=/bin/sh -c 'trap "touch /run/told" HUP; touch /run/ready; while :; do sleep 0.05; done'
"""


def test_nginx_is_told_before_each_start_of_the_daemon(tmp_path: Path) -> None:
    if (reason := why_there_is_no_machine()) is not None:
        pytest.skip(reason)
    with systemd_machine(tmp_path) as machine:
        units = machine.path("/etc/systemd/system")
        (units / "latentfs@art.service").write_text(DAEMON)
        (units / "nginx.service").write_text(WEB_SERVER)
        (units / "latentfs@art.service.d").mkdir()
        (units / "latentfs@art.service.d/nginx.conf").write_text(EXAMPLE.read_text())
        machine.systemctl("daemon-reload")
        machine.systemctl("start", "latentfs@art.service")  # before nginx runs: no failure
        machine.systemctl("start", "nginx.service")
        wait_until(machine.path("/run/ready").exists, "nginx runs")
        machine.systemctl("restart", "latentfs@art.service")
        wait_until(machine.path("/run/told").exists, "nginx is told")
        first, second = machine.path("/run/starts").read_text().splitlines()
        # "default NUMBER;", as a map of nginx has it.
        numbers = [int(line.split()[1].rstrip(";")) for line in (first, second)]
        assert first.startswith("default ")
        assert numbers[0] < numbers[1]
