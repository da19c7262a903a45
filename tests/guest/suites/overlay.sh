# What a union mount makes of its layers: overlay.sh UPPER LOWER MERGED. Prints what is merged, twice, with a remount
# in between, and what the upper layer holds.
set -eu
base=$1 lower=$2 merged=$3

mount_layers() {
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$base/upper,workdir=$base/work,redirect_dir=on" "$merged"
}
show() {
    cd "$merged"
    find . | LC_ALL=C sort | while read -r path; do
        stat -c '%n %F %a' "$path"
        if [ -f "$path" ] && [ ! -L "$path" ]; then cat "$path"; fi
    done
    cd /
}

mkdir -p "$lower/d1/sub" "$lower/d2" "$merged" "$base/upper" "$base/work"
cd "$lower"
for file in a b c h d1/x d1/sub/y d2/z; do echo "$file" >$file; done
ln -s a link
chmod 640 c

mount_layers
cd "$merged"
echo more >>a                            # copied up
rm b link                                # whiteouts
mv c c2                                  # copied up, and a whiteout in its place
rm -r d2; mkdir d2; echo new >d2/new     # an opaque directory
mv d1 d3                                 # a redirected one
mv d3/sub/y d3/y
rm -r d3/sub
ln h h2; rm h
ln -s nowhere dangling
mkfifo fifo
mkdir deep deep/er; echo q >deep/er/q
chmod 600 a; truncate -s 100 a
echo again >b
show
umount "$merged"
mount_layers
show
umount "$merged"
echo "upper:"
cd "$base/upper"
find . | LC_ALL=C sort | while read -r path; do stat -c '%n %F %t:%T' "$path"; done
