# SPDX-License-Identifier: Apache-2.0
"""VMMs that cannot run here: what they negotiate, and the order in which they use it, with our driver end for them.

Sources: cloud-hypervisor's vhost_user_common and virtio-devices/src/vhost_user/fs.rs; crosvm's
devices/src/virtio/vhost_user_frontend.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import devices
from virtiofs.client import device as client
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.vhostuser import messages as m

VMMS = {
    # It has its own configuration space, adds memory while it runs, and comes again on the same path.
    "cloud-hypervisor": m.PROTOCOL_F_MQ
    | m.PROTOCOL_F_REPLY_ACK
    | m.PROTOCOL_F_CONFIGURE_MEM_SLOTS
    | m.PROTOCOL_F_INFLIGHT_SHMFD
    | m.PROTOCOL_F_LOG_SHMFD
    | m.PROTOCOL_F_DEVICE_STATE,
    # The device's configuration space has the tag, and its GET_QUEUE_NUM the number of queues.
    "crosvm": m.PROTOCOL_F_CONFIG
    | m.PROTOCOL_F_MQ
    | m.PROTOCOL_F_BACKEND_REQ
    | m.PROTOCOL_F_DEVICE_STATE
    | m.PROTOCOL_F_SHMEM_MAP
    | m.PROTOCOL_F_REPLY_ACK,
}


@pytest.mark.parametrize("vmm", VMMS)
def test_its_features_are_enough_for_a_share_that_works(
    vmm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WANTED_PROTOCOL_FEATURES", VMMS[vmm])
    regions = 3 if VMMS[vmm] & m.PROTOCOL_F_CONFIGURE_MEM_SLOTS else 1
    with devices.start_ours(tmp_path, ["--tag", "myfs"]) as running:
        for turn in ("first", "again"):  # a VM that is started anew, or a VMM that lost its connection
            with Device.connect(
                running.socket, queues=1, queue_size=1024, memory=256 << 20, regions=regions
            ) as device:
                taken = device.front_end.protocol_features
                assert taken and taken & ~VMMS[vmm] == 0
                if taken & m.PROTOCOL_F_CONFIG:
                    assert device.tag == "myfs"
                else:
                    assert device.tag is None
                assert device.front_end.queue_count >= 2
                tree = Tree(Session(device))
                tree.write_file(f"/{turn}", turn.encode() * 3000)
                assert (tmp_path / turn).read_bytes() == turn.encode() * 3000
                assert tree.read_file(f"/{turn}") == turn.encode() * 3000
        assert running.alive
