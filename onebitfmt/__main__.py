"""`python -m onebitfmt` is `obd`."""

from onebitfmt.cli.app import main

main()
