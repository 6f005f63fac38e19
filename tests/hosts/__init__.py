"""Hosts for tests: a Docker engine, images made from the distribution, machines of them.

A host that a playbook reaches over SSH (kinds: image.REMOTE), from a test on this machine:

    from hosts import clone, image, registry
    from hosts.remote import Remote, inventory

    with Remote(image.SYSTEMD_DEBIAN13) as host:        # 2 s once the image is made
        clone.make(REPO, tmp_path / "clone")
        (tmp_path / "hosts.yml").write_text(inventory({"box": host}, model="tiny-r1"))
        run("ansible-playbook", "-i", tmp_path / "hosts.yml", "deploy.yml", "-l", "box",
            cwd=tmp_path / "clone")
        host.ssh("systemctl is-active docker").ok()     # over SSH; user="admin" for a plain user
        host.run("..."), host.read("/etc/..."), host.processes(), ...   # as on any Machine
        host.reboot()                                   # a power cycle; the address stays
        assert host.open_ports() == {22, 8080}          # as another machine sees it: 2 s
        image = registry.push("redis:7", "library/redis:7")     # what its Docker can pull

systemd-debian12  has Docker and compose v2, running, as an ops machine
systemd-debian13  has no Docker; /etc/docker/daemon.json (MTU, registry) is there: keep its keys
ssh-debian12/13   a rented box: sshd, no init system, not privileged
clean-debian12    a Machine without sshd, for a deploy on the machine itself

What differs from a real machine: kernel settings (sysctl) and modules are this machine's and are
not set at boot, the clock cannot be set, `copies()` leave out what is in /var/lib/docker.
"""
