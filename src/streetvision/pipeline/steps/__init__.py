"""The code of the phases: each reads artifacts, calls the packages of the layers below, and writes artifacts."""
