"""The rows of the option table that are about the DAX window."""

from vfsd import values
from vfsd.option import Option

WINDOW = (
    Option(
        "--dax-window",
        "Give the guest a window of this size, a power of two as 512M, into which it maps files instead of reading and "
        "writing them: no request, and no second copy in the guest's memory. With more than 512M a guest can't be "
        "paused. It takes --tag, root, Linux 6.9, QEMU 11.1 with its vhost-user-test-device-pci and a guest that has "
        "FUSE_DAX (docs/dax.md); vfsd-guest --dax-window knows how (vfsd only)",
        *("dax_window", "SIZE"),
        convert=values.window_size,
        default="no window",
    ),
    Option(
        "--dax-policy",
        "Which files a guest that leaves the choice to us maps: auto: those that gain by it, which are not "
        "executable, are within the sizes below, fit into the window beside the mapped files that are open, and have "
        "not been read here and there through a window too small for them; always: all; never: none (vfsd only)",
        *("dax_policy", "POLICY"),
        words={word: word for word in ("auto", "always", "never")},
    ),
    Option(
        *("--dax-min-size", "Smaller files are not worth a mapping (vfsd only)", "dax_min_size", "SIZE"),
        convert=values.size,
        default="1M",
    ),
    Option(
        *("--dax-max-size", "Larger files don't fit the window (vfsd only)", "dax_max_size", "SIZE"),
        convert=values.size,
        default="four fifths of the window",
    ),
)
