"""What a user sees of a wrong flag."""

import pytest

import similarity_analysis


def test_a_wrong_choice_is_one_line_that_lists_the_choices(capsys):
    with pytest.raises(SystemExit) as error:
        similarity_analysis.main(["--measure", "ckaa"])
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "invalid choice: 'ckaa'" in line and "'cka'" in line and line.endswith("--help says more")
