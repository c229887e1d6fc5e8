"""Files and folders that operating systems and file servers create in the folders of a user."""

SYSTEM_NAMES = frozenset(
    {
        ".ds_store",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "__macosx",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
    }
)
"""In lower case."""


def is_system_name(name: str) -> bool:
    """Return whether a file or folder of this name comes from the system and not from the user."""
    return name.startswith("._") or name.casefold() in SYSTEM_NAMES
