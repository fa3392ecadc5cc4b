"""List files that the tests write."""


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
