"""One self-contained HTML page about a run: `page` gathers what it says, `charts` draws, `templates` lays it out."""
