"""Sections of the report: what a task shows of its runs beside scores, learning curves, costs and origins.

A section is a class, registered under the name of its task (or of several), with a template beside its file::

    @register("report", "counting", summary="counts beside the true ones")     # viz/sections/counting.py
    class CountingSection(ReportSection[CountingFacts]):
        template = "counting.html.jinja"
        facts_model = CountingFacts                                            # a subclass of reading.Facts

        def context(self):
            return {"counts": read_checked(self.run.seeds["1"] / "counts.json", Counts)}

    {% extends "report.html.jinja" %}                                          {# viz/sections/counting.html.jinja #}
    {% block answers %}{% if counts %}<section id="counting">…</section>{% endif %}{% endblock %}

:class:`~.base.ReportSection` says what a class may declare, and what the template may fill: every block has a default,
so a section writes those that differ. A task without a section gets the general report. A package outside this one
registers its sections by the entry point of its tasks.
"""
