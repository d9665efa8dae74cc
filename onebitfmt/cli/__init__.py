"""The command line `obd`: words, tables, progress and exit codes live only here."""
