"""A mistake in a marker or an option is one clear message that names the test and the fix, before anything runs."""

from __future__ import annotations

import pytest

TEST = """
import pytest

{marks}
def test_mistaken(quant_model): ...
"""


@pytest.mark.parametrize(
    "mark, said",
    [
        ("perplexity_delta(maximum=1.0)", "*no argument 'maximum'; its arguments are max, max_ratio*"),
        ("perplexity_delta(1.0)", "*no positional arguments, got 1.0; write perplexity_delta(max=1.0)*"),
        ('perplexity_delta(max="1")', "*(max='1'): must be a number, not str; write max=1*"),
        ("perplexity_delta(max=-1)", "*must not be negative*"),
        ('perplexity_delta(max=float("nan"))', "*must be a finite number*"),
        ("perplexity_delta(max=[1])", "*must be a number, not list*"),
        ("perplexity_delta()", "*needs a limit: max=... or max_ratio=...*"),
        ('throughput_ratio(min=1, phase="decoding")', "*must be one of 'decode', 'prefill', 'ttft'*"),
        ("throughput_ratio(min=1, batch_size=[])", "*throughput_ratio: batch_size=[[]] tests nothing*"),
        ("throughput_ratio(min=1, batch_size=[1, 0])", "*(batch_size=0): must be a whole number of 1 or more*"),
        ("throughput_ratio(max=1)", "*throughput_ratio has no argument 'max'; its arguments are *min*"),
        ('throughput_ratio(min=1, compile=True, cache="dynamic")', '*(compile=True) needs cache="static": what grows*'),
        ('throughput_ratio(min=1, compile=True, phase="prefill")', '*(compile=True) is for phase="decode"*'),
        ('throughput_ratio(min=1, cache="paged")', "*(cache='paged'): must be one of 'dynamic', 'static'*"),
        ("energy_ratio()", "*needs a limit: max=... or max_joules=...*"),
        ("energy_ratio(max=0)", "*energy_ratio(max=0): must be above 0: it would never hold*"),
        ('energy_ratio(max="0.5")', "*(max='0.5'): must be a number, not str; write max=0.5*"),
        ("cost_ratio(max=1, price=-1)", "*cost_ratio(price=-1): must be dollars an hour, a number above 0*"),
        ("cost_ratio(price=2)", "*needs a limit: max=... or max_usd=...*"),
        ('memory_budget(max_gb=1, of="ram")', "*must be one of 'weights', 'activations', 'peak', 'kv_cache'*"),
        ('quant(formats=["nf5"])', "*unknown format 'nf5'; did you mean nf4? The formats are fp32, bf16*"),
        ('quant(formats="int8")', "*must be a list of format names*"),
        ("quant(formats=[])", "*tests nothing*"),
        ('quant(reference="int8")\n@pytest.mark.perplexity_delta(max=1)', "*is a quantized format; use fp32*"),
        ('quant(formats=["fp32"])\n@pytest.mark.perplexity_delta(max=1)', "*fp32 is the reference*"),
        ("task_accuracy(task='arc_easy')", "*task_accuracy needs a limit: max_drop=... or min_recovery=...*"),
        ("task_accuracy(max_drop=0.1)", "*task_accuracy needs a task of lm-eval*"),
        ("generation_match(min=2)", "*generation_match(min=2): is a share of tokens and can be at most 1*"),
        ("layer_sensitivity(max=1, group_size=32)", "*needs numeric=*"),
        ("kl_divergence(p99=0)", "*kl_divergence(p99=0): must be above 0*"),
        ("token_agreement(min=1.1)", "*token_agreement(min=1.1): is a share of tokens and can be at most 1*"),
    ],
)
def test_in_a_marker(project, mark, said):
    project.test(TEST.format(marks=f"@pytest.mark.{mark}"))
    result = project.gate()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*test_quant.py::test_mistaken: {said.lstrip('*')}" if said[0] != "*" else said])
    result.stdout.fnmatch_lines(["*test_quant.py::test_mistaken*"])
    result.stdout.no_fnmatch_line("*pytest_quant/*.py*")
    result.stdout.no_fnmatch_line("*During handling*")


def test_no_model_anywhere(project):
    (project.path / "pytest.ini").write_text("[pytest]\n")
    project.test(TEST.format(marks='@pytest.mark.quant(formats=["int8"])'))
    result = project.gate()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*test_mistaken: no model: give quant(model=...), --quant-model=MODEL, or model in*"])


def test_no_format_anywhere(project):
    (project.path / "pytest.ini").write_text(f"[pytest]\nquant_model = {project.model}\n")
    project.test(TEST.format(marks="@pytest.mark.perplexity_delta(max=1)"))
    result = project.gate()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*test_mistaken: no format: give*"])


def test_a_marker_on_unittest(project):
    project.test(
        """
        import pytest, unittest

        class TestOld(unittest.TestCase):
            @pytest.mark.perplexity_delta(max=1)
            def test_old(self): ...
        """
    )
    result = project.gate()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *test_old: the test has gates but no format; only test functions*"])


@pytest.mark.parametrize(
    "option, said",
    [
        ("--quant-confidence=2", "*--quant-confidence=2: must be a number from 0.5*"),
        ("--quant-max-windows=1", "*--quant-max-windows=1: must be a whole number of 2 or more*"),
        ("--quant-protocol=gptq", "*unknown protocol 'gptq'; write gptq-L*"),
        ("--quant-formats=int8,int9", "*--quant-formats: unknown format 'int9'*"),
        ("--quant-require=q4", "*--quant-require: unknown format 'q4'*"),
        ("--quant-missing=ignore", "*--quant-missing=ignore: may be record or fail*"),
        ("--quant-speed-budget=0", "*--quant-speed-budget=0: must be a number above 0*"),
        ("--quant-speed-budget=1m", "*--quant-speed-budget=1m: must be a number above 0*"),
        ("--quant-speed-budget=inf", "*--quant-speed-budget=inf: must be a number above 0*"),
        ("--quant-price=-2", "*--quant-price=-2: must be a number above 0*"),
        ("--quant-price=$2", "*--quant-price=$2: must be a number above 0*"),
        (
            "--quant-accept=mig,noise",
            "*--quant-accept: there is no condition 'noise'; there are other-process, *workers*",
        ),
        ("--quant-device=NVIDIA L4", "*--quant-device goes with --quant-plan*"),
        ("--quant-corpus=nowhere.txt", "*--quant-corpus: unknown corpus 'nowhere.txt': neither 'python-docs' nor*"),
        ("--quant-matrix=nowhere.toml", "*--quant-matrix: nowhere.toml: cannot be read*"),
    ],
)
def test_in_an_option(project, option, said):
    project.test("def test_x(): ...")
    result = project.run(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])
    result.stderr.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    "line, said",
    [
        ("quant_speed_budget = none", "*quant_speed_budget in *pytest.ini=none: must be a number above 0*"),
        ("quant_price = 0", "*quant_price in *pytest.ini=0: must be a number above 0*"),
        (
            "quant_accept = cpu-load loud",
            "*quant_accept in *pytest.ini: there is no condition 'loud'; there are other*",
        ),
    ],
)
def test_in_the_ini_file(project, line, said):
    project.ini(line)
    project.test("def test_x(): ...")
    result = project.run("--quant-baseline")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])
    result.stderr.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    "arguments, lines, settings",
    [
        ([], ["quant_speed_budget =", "quant_accept ="], (60.0, None, ())),
        ([], ["quant_speed_budget = 5", "quant_price = 2.5", "quant_accept = mig, vgpu"], (5.0, 2.5, ("mig", "vgpu"))),
        (
            ["--quant-speed-budget=0.5", "--quant-price=1e-1", "--quant-accept=cpu-load"],
            ["quant_speed_budget = 5", "quant_price = 2.5", "quant_accept = mig, vgpu"],
            (0.5, 0.1, ("cpu-load",)),
        ),
    ],
)
def test_the_command_line_wins_over_the_ini_file(project, arguments, lines, settings):
    project.ini(*lines)
    project.test(
        f"""
        from pytest_quant import options

        def test_settings(pytestconfig):
            told = options.read(pytestconfig)
            assert (told.speed_budget, told.price, told.accept) == {settings!r}
        """
    )
    project.run(*arguments).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "mark, arguments, said",
    [
        ("cost_ratio(max_usd=1)", [], "*cost_ratio(max_usd=...) needs a price an hour: price=... or --quant-price=*"),
        (
            "throughput_ratio(min=0.1, prompt_tokens=500, new_tokens=13)",
            [],
            "*decode of 513 tokens does not fit the model's 512 positions*",
        ),
        (
            'throughput_ratio(min=1e6, phase="prefill")',
            [],
            "*throughput_ratio(min=1e+06) asks for more than the hardware allows: fp32 makes * tokens/s in prefill*"
            "int8 can make * at best (*) for one prefill); the ratio is at most * x; with both at their bound *",
        ),
    ],
)
def test_what_cannot_be_asked_of_speed_is_one_error_without_a_traceback(project, mark, arguments, said):
    project.test(TEST.format(marks=f"@pytest.mark.{mark}"))
    result = project.gate(*arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([said])
    result.stdout.no_fnmatch_line("*pytest_quant/*.py*")
    assert project.baselines == {}


@pytest.mark.parametrize(
    "option, said",
    [
        ("--quant-model=no/such-model", "*'no/such-model' cannot be loaded as int8:*"),
        ("--quant-protocol=gptq-1024", "*use a longer text or a shorter window*"),
        ("--quant-protocol=gptq-520", "*do not fit the model's 512 positions*--quant-protocol=gptq-512*"),
    ],
)
def test_what_cannot_be_had_is_one_error_without_a_traceback(project, option, said):
    project.test(TEST.format(marks="@pytest.mark.perplexity_delta(max_ratio=3)"))
    result = project.gate(option)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([said])
    result.stdout.no_fnmatch_line("*pytest_quant/*.py*")
    assert project.baselines == {}
