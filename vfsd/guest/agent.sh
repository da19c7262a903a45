# First process of a running guest. Reads shell lines from the request port and runs them; serves commands on numbered
# slots, each of which has three virtio-serial ports. channel.py is the other end.
#
# Rule 1: a slot's control port carries, host to guest, "TOKEN SIZE\n" and SIZE bytes of script, then standard input as
# "SIZE\n" and SIZE bytes, closed by "0\n"; guest to host "pid N\n", "exit STATUS\n".
# Rule 2: the out and err ports carry the command's bytes, then TOKEN. The token is how the host knows the end.

PATH=/run/vfsd/bin
STATE=/run/vfsd
mkdir -p $STATE/port

# Virtio-serial ports have names; the device nodes have numbers. What has a name keeps it: whoever opened it while it was
# made anew would make a file there.
name_ports() {
	for entry in /sys/class/virtio-ports/*; do
		[ -s "$entry/name" ] && ln -sn "/dev/${entry##*/}" "$STATE/port/$(cat "$entry/name")" 2>/dev/null
	done
}

await_port() {
	tries=0
	until [ -e "$STATE/port/$1" ]; do
		name_ports
		tries=$((tries + 1))
		if [ $tries -gt 200 ]; then
			echo "vfsd-guest: failed: no virtio-serial port $1" >/dev/console
			reboot -f
		fi
		sleep 0.05
	done
}

# Standard input of a command: pieces from the control port into its pipe, also when nobody reads them any more.
feed() {
	exec 6>"$1"
	while read -r size <&3 && [ "$size" -gt 0 ]; do
		dd bs="$size" count=1 iflag=fullblock <&3 >&6 2>/dev/null
	done
}

serve() {
	await_port "control$1"
	await_port "out$1"
	await_port "err$1"
	exec 3<>"$STATE/port/control$1" 4<>"$STATE/port/out$1" 5<>"$STATE/port/err$1"
	dir=$STATE/$1
	mkdir -p "$dir"
	mkfifo "$dir/in" "$dir/out" "$dir/err"
	while read -r token size <&3; do
		echo 'echo "pid $$" >&3; exec 3>&- 4>&- 5>&-' >"$dir/script"
		dd bs="$size" count=1 iflag=fullblock <&3 >>"$dir/script" 2>/dev/null
		cat "$dir/out" >&4 &
		out=$!
		cat "$dir/err" >&5 &
		err=$!
		echo "$out $err" >"$dir/pumps"
		feed "$dir/in" &
		feeder=$!
		# In the foreground, because a shell without job control has what it puts into the background ignore SIGINT. In
		# a subshell, because opening a pipe fails in a process that one of the children above interrupts by its end.
		(exec setsid env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run/home USER=root \
			LOGNAME=root LANG=C.UTF-8 TERM="${TERM:-linux}" /bin/sh "$dir/script" \
			<"$dir/in" >"$dir/out" 2>"$dir/err")
		echo "exit $?" >&3
		wait $out $err
		printf %s "$token" >&4
		printf %s "$token" >&5
		wait $feeder
	done
}

# Serves a slot in a process of its own, whose signals are as the kernel made them.
start_slot() {
	start-stop-daemon -S -b -p $STATE/none.pid -x $PATH/sh -- $STATE/agent.sh serve "$1" 9<&-
}

reply() {
	echo "$*" >&9
}

share() { # TAG DIRECTORY OPTIONS
	mkdir -p "$2"
	if text=$(mount -t virtiofs -o "$3" "$1" "$2" 2>&1); then
		reply ok
	else
		reply "failed $(echo "$text" | tr '\n' ' ')"
	fi
}

# Everything of a command's session, then what left it and still holds its output pipes.
kill_session() { # PID SLOT
	for status in /proc/[0-9]*/stat; do
		# pid (name) state ppid pgrp session: the name may hold anything, so cut after its last parenthesis.
		{ read -r line <"$status"; } 2>/dev/null || continue
		set -- "$1" "$2" ${line##*) }
		[ "$6" = "$1" ] && kill -KILL "$(basename "${status%/stat}")" 2>/dev/null
	done
	pumps=$(cat "$STATE/$2/pumps")
	# By then the slot may have the next command, with pumps of its own.
	{ sleep 1 && [ "$(cat "$STATE/$2/pumps")" = "$pumps" ] && kill $pumps 2>/dev/null; } &
}

# Writes back what the guest caches, ends the mounts in order, then the machine.
stop() {
	kill -TERM -1
	kill -KILL -1
	cd /
	sync
	umount -a -t virtiofs
	reboot -f
}

if [ "$1" = serve ]; then
	serve "$2"
	exit
fi

await_port request
exec 9<>$STATE/port/request
reply ready "$(uname -r)"
# Ends with the host's end of the port.
while read -r line <&9; do
	eval "$line"
done
reboot -f
