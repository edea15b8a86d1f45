"""A runner of Django tests that writes a report in the format of pytest-reportlog."""

import json
import os
import unittest
from pathlib import Path

from django.test.runner import DiscoverRunner


def _report(line):
    with Path(os.environ["ECOSYSTEM_REPORT"]).open("a") as file:
        print(json.dumps(line), file=file)


class ReportingResult(unittest.TextTestResult):
    """The result in the first process, which collects those of the other processes."""

    def _write(self, test, outcome, text=None, **more):
        _report({"$report_type": "TestReport", "nodeid": test.id(), "outcome": outcome, "longrepr": text, **more})

    def addSuccess(self, test):
        super().addSuccess(test)
        self._write(test, "passed")

    def addError(self, test, err):
        super().addError(test, err)
        self._write(test, "failed", self.errors[-1][1])

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._write(test, "failed", self.failures[-1][1])

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            found = self.failures if issubclass(err[0], test.failureException) else self.errors
            self._write(test, "failed", found[-1][1])

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._write(test, "skipped", reason)

    def addExpectedFailure(self, test, err):
        super().addExpectedFailure(test, err)
        self._write(test, "skipped", wasxfail="")

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self._write(test, "failed", "unexpected success")


class ReportingRunner(DiscoverRunner):
    def get_resultclass(self):
        return ReportingResult

    def run_suite(self, suite, **kwargs):
        result = super().run_suite(suite, **kwargs)
        _report({"$report_type": "SessionFinish", "exitstatus": int(not result.wasSuccessful())})
        return result
