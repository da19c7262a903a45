"""What an option is: how it is typed, what it takes, and what that means to Config."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vfsd import information, values
from vfsd.errors import UsageError


class Option(NamedTuple):
    """One option. What it gives is text until `value` has checked it; without a value it gives the text `constant`."""

    #: How it is typed, separated by spaces. "": it exists in `-o` lists only.
    spellings: str
    help: str
    #: The field of Config it sets; "": nothing to keep, since it accepts only what is done anyway.
    setting: str = ""
    #: Its value in `--help`; "": it takes none; in brackets: the value may be left out.
    metavar: str = ""
    constant: str = "on"
    #: The words it accepts, in any case, and what each is in Config. Empty: `convert` decides.
    words: Mapping[str, Any] = {}
    #: Words that virtiofsd accepts too, for what vfsd has not built.
    unbuilt: tuple[str, ...] = ()
    convert: values.Convert = str
    #: Its keys in `-o` lists: the text each stands for, or None for what follows "=".
    legacy: Mapping[str, str | None] = {}
    #: Each use adds to what the ones before gave; otherwise the last wins.
    repeats: bool = False
    #: The default in words, where Config's own value does not say it.
    default: str = ""
    #: Makes what the option prints before it ends the program.
    prints: information.Text | None = None

    @property
    def names(self) -> list[str]:
        return self.spellings.split()

    def value(self, text: str, name: str) -> Any:
        """What `text` means to Config; `name` is the option as the user typed it. Raises UsageError."""
        word = text.lower()
        if word in self.unbuilt:
            given = f"{name}={text}" if word != self.constant else name
            raise UsageError(f"{given} is not built yet in vfsd: leave it out")
        if self.words:
            if word not in self.words:
                raise UsageError(f"{name} must be one of {', '.join(self.words)}, not {text!r}")
            return self.words[word]
        try:
            return self.convert(text)
        except values.Sentence as error:
            raise UsageError(f"{name}: {error}") from None
        except ValueError as error:
            raise UsageError(f"{name} must be {error}, not {text!r}") from None
