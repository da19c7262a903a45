#!/bin/sh
# First process of a guest: loads modules, lays out the root file system, hands over to the agent. What it says on the
# console ends up in vfsd-guest's failure report; a line that starts with "vfsd-guest:" is a stage or the reason of a failure.

fail() {
	echo "vfsd-guest: failed: $*" >/dev/console
	sleep 1
	reboot -f
}

# Loads the modules named in a file, in order. One that is there already is no failure.
load() {
	while read -r name; do
		insmod "/modules/$name.ko" || [ -d "/sys/module/$name" ] || fail "module $name does not load"
	done <"$1"
}

option() {
	for word in $(cat /proc/cmdline); do
		case $word in "$1="*) echo "${word#*=}" ;; esac
	done
}

/bin/busybox --install -s /bin
PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev || fail "the kernel has no devtmpfs"
echo "vfsd-guest: stage modules" >/dev/console
load /modules/needed

case $(option vfsd.root) in
host)
	[ -s /modules/host-root ] || [ -d /sys/module/9p ] || fail "the kernel has no 9p for the host's root; use --root busybox"
	load /modules/host-root
	mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose vfsd-root /host ||
		fail "the host's root does not mount"
	mount -t tmpfs -o mode=755 upper /rw
	mkdir -m 755 /rw/upper /rw/work
	mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work root /newroot ||
		fail "no overlay over the host's root"
	;;
*)
	mount -t tmpfs -o mode=755 root /newroot
	mkdir -p /newroot/bin /newroot/etc /newroot/usr
	cp /bin/busybox /newroot/bin/busybox
	chroot /newroot /bin/busybox --install -s /bin
	echo 'root:x:0:0:root:/run/home:/bin/sh' >/newroot/etc/passwd
	echo 'root:x:0:' >/newroot/etc/group
	;;
esac

cd /newroot || fail "no root"
mkdir -p proc sys dev run tmp mnt
mount --move /proc proc
mount --move /sys sys
mount --move /dev dev
mkdir -p dev/pts dev/shm
mount -t devpts -o ptmxmode=666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=1777 tmp tmp
mount -t tmpfs -o mode=755 mnt mnt
ln -sf /proc/self/fd dev/fd
ln -sf /proc/self/fd/0 dev/stdin
ln -sf /proc/self/fd/1 dev/stdout
ln -sf /proc/self/fd/2 dev/stderr
mkdir -p run/vfsd/bin run/home run/lock
cp /bin/busybox run/vfsd/bin/busybox
cp /agent.sh run/vfsd/agent.sh
chroot . /run/vfsd/bin/busybox --install -s /run/vfsd/bin
echo guest >proc/sys/kernel/hostname
ifconfig lo 127.0.0.1 up 2>/dev/null
exec switch_root -c /dev/console /newroot /run/vfsd/bin/sh /run/vfsd/agent.sh
fail "switch_root"
