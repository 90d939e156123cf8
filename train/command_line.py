"""Flags of a command that takes a recipe: what is wrong with them is one message, exit code 2."""

import sys
from collections.abc import Sequence

from absl import flags

DONE, BAD_INPUT = 0, 2


def parse_flags(argv: Sequence[str]) -> list[str]:
  """The arguments that are no flags; a wrong flag, key or recipe is one message and exit code 2."""
  try:
    rest = flags.FLAGS(argv)
    recipe = flags.FLAGS["config"].value
    if recipe is not None:
      recipe.to_dict()  # a recipe that could not be loaded says so when it is used
    return rest
  except (AttributeError, KeyError) as error:  # ml_collections, which suggests the nearest name
    near = str(error.args[0]).replace("\\n", " ").replace("\n", " ")
    print(f"error: the recipe has no key {near}", file=sys.stderr)
  except (flags.Error, OSError, ValueError) as error:
    print(f"error: {without_traceback(str(error))}", file=sys.stderr)
  except (SyntaxError, ImportError) as error:
    print(f"error: the recipe can't be loaded: {error}", file=sys.stderr)
  sys.exit(BAD_INPUT)


def without_traceback(message: str) -> str:
  """The last line where ml_collections quotes how a recipe failed, without the error's class."""
  if "Traceback (most recent call last)" not in message:
    return message
  return message.strip().splitlines()[-1].partition(": ")[2]
