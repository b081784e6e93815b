"""`python -m manyskills`, which launchers of several processes need."""

from manyskills.cli.app import main

if __name__ == "__main__":
    main()
