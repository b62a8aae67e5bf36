"""Which mount options are the kernel's, which are for others, and which are nobody's."""

from __future__ import annotations

import pytest

from latentfs.settings.kernel_options import chosen_options, is_for_others, read_options
from latentfs.settings.sources import given_by_mount_options

# What mount(8) 2.38 hands to a helper of what fstab may say, beside ro and rw.
FROM_MOUNT = (
    "noexec,nosuid,nodev,exec,suid,dev,users,user,user=anna,nofail,_netdev,iversion,mand,silent,"
    "lazytime,relatime,strictatime,nodiratime,sync,dirsync,helper=udisks2,uhelper=udisks2"
)
# What it keeps for itself, and others that run helpers might not.
KEPT_BY_MOUNT = (
    "defaults,auto,noauto,nouser,nousers,owner,noowner,group,nogroup,comment=pictures,loud,async,"
    "noiversion,nomand,diratime,norelatime,nostrictatime,nolazytime,"
    "x-systemd.automount,x-systemd.requires-mounts-for=/var,x-gvfs-hide,X-mount.mkdir=0755"
)


def test_what_is_for_mount_fstab_and_systemd_changes_nothing() -> None:
    given = given_by_mount_options(FROM_MOUNT)
    assert given == {"mount_options": ["noexec", "nosuid", "nodev", "exec", "suid", "dev"]}
    assert given_by_mount_options(KEPT_BY_MOUNT) == {}
    assert read_options(KEPT_BY_MOUNT) == ()


@pytest.mark.parametrize(
    "option",
    [
        "remount",
        "bind",
        "uid=0",
        "users=anna",
        "userx",
        "comment",
        "allow_root",
        "x",
    ],
)
def test_what_would_change_something_is_not_ignored(option: str) -> None:
    assert not is_for_others(option)
    with pytest.raises(ValueError, match="is not known"):
        read_options(option)


def test_a_message_names_the_nearest_option() -> None:
    with pytest.raises(ValueError, match="did you mean 'allow_other'"):
        read_options("alow_other,noexec")
    with pytest.raises(ValueError, match="there are allow_other, atime, default_permissions"):
        read_options(["qqq"])


def test_later_options_count_before_earlier_ones_and_defaults() -> None:
    safe = {"default_permissions", "nodev", "nosuid"}
    assert chosen_options((), may_allow_other=False) == safe
    assert chosen_options((), may_allow_other=True) == safe | {"allow_other"}
    both = read_options("noallow_other,dev,suid,noexec,nodev")
    chosen = chosen_options(both, may_allow_other=True)
    assert chosen - {"suid"} == safe - {"nosuid"} | {"noexec"}
    for taken_back, option in (
        ("exec", "noexec"),
        ("atime", "noatime"),
        ("symfollow", "nosymfollow"),
    ):
        assert option in chosen_options((taken_back, option), may_allow_other=False)
        assert chosen_options((option, taken_back), may_allow_other=False) == safe


@pytest.mark.parametrize(("user", "is_permitted"), [(0, True), (1000, False)])
def test_only_root_may_have_devices_and_set_user_ids(
    monkeypatch: pytest.MonkeyPatch, user: int, is_permitted: bool
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    always = {"default_permissions"}
    both = chosen_options(("dev", "suid"), may_allow_other=False)
    assert both == (always | {"dev", "suid"} if is_permitted else always)
    one = chosen_options(("dev", "suid", "nosuid"), may_allow_other=False)
    assert one - {"dev"} == always | {"nosuid"}
    assert not {"dev", "suid"} & chosen_options((), may_allow_other=False)
