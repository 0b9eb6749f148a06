from limbeck.cli_common import Command
COMMANDS = {}
