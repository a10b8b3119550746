"""`plug-jax plan`: requirements on gin files, output, and the search for a batch size."""

import dataclasses
import importlib.util
import json

import jax
import pytest
from jax.errors import JaxRuntimeError

from plug_jax.cli import main as dispatcher
from plug_jax.cli import plan as command
from plug_jax.compilation import compile_program
from plug_jax.errors import PlugError
from plug_jax.planning import plan as planning
from plug_jax.planning import sweep as sweeping
from plug_jax.planning.calibration import Expectation
from plug_jax.planning.compile import DoesNotFit, compile_step, kept_activations
from plug_jax.planning.roofline import Roofline
from plug_jax.planning.topologies import GIB, parse_topology
from plug_jax.training.program import train_program

FILES = ["runs/palm_pretrain.gin", "models/tiny.gin", "mesh/cpu8.gin"]
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: extra `tpu`"
)


def arguments(*others, files=FILES):
    return ["plan", *(f"--gin_file={file}" for file in files), *others]


def test_gin_files_need_no_data_and_no_model_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = command.configure(FILES, ["BATCH_SIZE = 16", "TRAIN_FILES = 'nowhere/*.txt'"])
    assert config.train_data.batch_size == 16
    assert config.train_data.feature_lengths == {"encoder": 1024, "decoder": 1024}
    assert config.eval_data is None
    stage1 = command.configure(["runs/structbert_pretrain.gin", *FILES[1:]], [])
    assert stage1.model.num_decoder_layers == 0
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_macro_is_named_all_the_same():
    with pytest.raises(PlugError, match="did you mean BATCH_SIZE?"):
        command.configure(FILES, ["BACH_SIZE = 16"])


def some_plan(config, topology, *, fits=True, **changes):
    speed = None
    if fits:
        values = dict.fromkeys(planning.Speed.__dataclass_fields__, 0)
        values |= {"roofline": Roofline(2.0, 1.0, 1.0, 0.5), "collectives": (), "mfu_bound": 0.5}
        values |= {"expected": None, "expected_days": None}
        speed = planning.Speed(**(values | changes))
    return planning.Plan(
        topology=str(topology),
        chips=topology.num_chips,
        devices=topology.num_devices,
        mesh={"data": 2, "fsdp": config.partitioner.fsdp, "tensor": config.partitioner.tensor},
        stage=2,
        objectives=("tokens", "decoder"),
        parameters=1,
        batch_size=config.train_data.batch_size,
        micro_batches=config.step.micro_batches,
        lengths=dict(config.train_data.feature_lengths),
        remat=config.model.remat,
        attention=config.model.attention,
        fits=fits,
        hbm_needed=12 * GIB if fits else 20 * GIB,
        hbm_available=16 * GIB,
        memory=None,
        speed=speed,
        trace_seconds=1.0,
        compile_seconds=2.0,
    )


@pytest.fixture
def eight_devices(monkeypatch):
    """Plans for v5e:2x4 on the 8 CPU devices: no TPU compiler."""
    monkeypatch.setattr(planning, "compile_only_devices", lambda topology: tuple(jax.devices()))
    return parse_topology("v5e:2x4")


@pytest.mark.parametrize(("start", "largest"), [(8, 8), (8, 100), (64, 24), (1024, 1)])
def test_find_batch(eight_devices, monkeypatch, start, largest):
    """data x fsdp = 4 parts of 2 micro-batches: multiples of 8."""
    config = command.configure(FILES, [f"BATCH_SIZE = {start}", "MICRO_BATCHES = 2"])
    monkeypatch.setattr(
        planning,
        "make_plan",
        lambda c, topology: some_plan(c, topology, fits=c.train_data.batch_size <= largest),
    )
    tried = []
    if largest < 8:
        with pytest.raises(PlugError, match="no batch fits, not even batch 8 on v5e:2x4"):
            planning.find_batch(config, eight_devices, tried.append)
    else:
        plan = planning.find_batch(config, eight_devices, tried.append)
        assert plan.batch_size == largest // 8 * 8
    assert len({plan.batch_size for plan in tried}) == len(tried) <= 9


@pytest.mark.parametrize(("knows", "tries"), [(True, 5), (False, 12)])
def test_find_batch_interpolates_what_the_compiler_says_it_needs(
    eight_devices, monkeypatch, knows, tries
):
    """4 GiB and 1 MiB a row, of 15.75 GiB: 12,032 rows = 1,504 x 8. Blind search: 12 plans."""
    config = command.configure(FILES, ["BATCH_SIZE = 8192", "MICRO_BATCHES = 2"])

    def make(c, topology):
        rows = c.train_data.batch_size
        needed = 4 * GIB + rows * 2**20
        plan = some_plan(c, topology, fits=rows <= 12_032)
        return dataclasses.replace(
            plan,
            hbm_needed=needed if knows or plan.fits else None,
            hbm_available=int(15.75 * GIB),
        )

    monkeypatch.setattr(planning, "make_plan", make)
    tried = []
    assert planning.find_batch(config, eight_devices, tried.append).batch_size == 12_032
    assert len(tried) <= tries


def test_sweep_ranks_what_fits_and_leaves_out_what_does_not_divide(eight_devices, monkeypatch):
    config = command.configure(FILES, ["BATCH_SIZE = 16"])

    def make(candidate, topology):
        partitioner = candidate.partitioner
        if partitioner.tensor == 4:
            raise PlugError("tensor 4 does not divide 2 heads")
        bound = 0.1 * partitioner.fsdp
        return some_plan(candidate, topology, fits=partitioner.fsdp < 8, mfu_scheduled=bound)

    monkeypatch.setattr(sweeping, "make_plan", make)
    said = []
    grid = sweeping.Grid.of(config, eight_devices)
    assert (grid.fsdp, grid.tensor) == ((8, 4, 2, 1), (1, 2, 4, 8))
    grid = sweeping.Grid.of(config, eight_devices, tensor=[1, 2, 4])
    plans = sweeping.sweep(config, eight_devices, grid, said.append)
    assert (plans[0].mesh["fsdp"], plans[0].mesh["tensor"], plans[0].fits) == (4, 1, True)
    assert [p.fits for p in plans] == sorted((p.fits for p in plans), reverse=True)
    assert any("left out: tensor 4 does not divide" in line for line in said)


def test_a_sweep_ranks_by_what_published_runs_let_expect(eight_devices, monkeypatch):
    """HBM time and waiting count for less than in a bound, or for more."""
    config = command.configure(FILES, ["BATCH_SIZE = 16"])
    expected = {8: 0.4, 4: 0.6}

    def make(candidate, topology):
        fsdp = candidate.partitioner.fsdp
        hoped = Expectation(expected[fsdp], 0.3, 0.7, chip_rows=1, rows=9, outside=())
        return some_plan(candidate, topology, expected=hoped, mfu_scheduled=0.1 * fsdp)

    monkeypatch.setattr(sweeping, "make_plan", make)
    said = []
    grid = sweeping.Grid.of(config, eight_devices, fsdp=[8, 4], tensor=[1])
    plans = sweeping.sweep(config, eight_devices, grid, said.append)
    assert [plan.mesh["fsdp"] for plan in plans] == [4, 8]
    assert said[-1].endswith("as compiled 40.0%, expected 60%")


def test_a_sweep_with_nothing_to_compare_says_why(eight_devices):
    config = command.configure(FILES, ["BATCH_SIZE = 16"])
    grid = sweeping.Grid.of(config, eight_devices, fsdp=[3], tensor=[1])
    with pytest.raises(
        PlugError, match=r"no fsdp of \(3,\) times tensor of \(1,\) divides the dev"
    ):
        sweeping.sweep(config, eight_devices, grid, print)
    said = []
    grid = sweeping.Grid.of(config, eight_devices, fsdp=[8], tensor=[1], micro_batches=[3, 5])
    with pytest.raises(PlugError, match="all 2 were left out, as said above"):
        sweeping.sweep(config, eight_devices, grid, said.append)
    assert "left out: BATCH_SIZE 16 does not divide into 5 micro-batches" in said[-1]


def test_a_sweep_over_micro_batches_and_saved_names(eight_devices):
    config = command.configure(FILES, ["BATCH_SIZE = 16"])
    policies = ["full", "names=qkv,wi", "names"]
    grid = sweeping.Grid.of(
        config, eight_devices, fsdp=[8], tensor=[1], micro_batches=[1, 2], remat=policies
    )
    tried = [(c.step.micro_batches, c.model.remat) for c in grid.configs(config, eight_devices)]
    texts = ["full", "names=qkv,wi", "names=qkv,out"]
    assert tried == [(1, text) for text in texts] + [(2, text) for text in texts]
    own = sweeping.Grid.of(config, eight_devices)
    assert (own.models, own.micro_batches) == ((config.model,), (config.step.micro_batches,))
    with pytest.raises(PlugError, match="remat_saved_names must be .*, not .*'mlp'"):
        sweeping.with_remat(config.model, "names=mlp")
    with pytest.raises(PlugError, match="remat_policy must be one of .* not 'some'"):
        sweeping.with_remat(config.model, "some")


def test_what_does_not_fit_is_said_with_status_1(eight_devices, monkeypatch, capsys):
    def out_of_memory(program):
        raise DoesNotFit(
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (20.50G) exceeds available HBM (15.75G)."
        )

    monkeypatch.setattr(planning, "compile_step", out_of_memory)
    assert dispatcher.main(arguments("--topology=v5e:2x4", "--gin.BATCH_SIZE=8")) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "batch 8 on v5e:2x4 (data=2 x fsdp=2 x tensor=2) does not fit" in out
    assert "it needs 20.50 GiB, a device has 15.75 GiB" in out
    assert dispatcher.main(arguments("--topology=v5e:2x4", "--gin.BATCH_SIZE=8", "--json")) == 1
    values = json.loads(capsys.readouterr().out)
    assert values["fits"] is False and values["hbm_needed"] == int(20.5 * GIB)


def test_running_out_of_on_chip_memory_is_no_matter_of_the_batch():
    class Program:
        def trace(self):
            return self

        def lower(self):
            return self

        def compile(self):
            raise JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 16.38M of 16.00M "
                "vmem. Exceeded vmem capacity by 388.0K."
            )

    with pytest.raises(PlugError, match="the TPU compiler failed: .* vmem capacity by 388.0K"):
        compile_step(Program())


def test_an_error_without_sizes_is_still_out_of_memory():
    assert DoesNotFit("RESOURCE_EXHAUSTED: something new").needed is None
    assert DoesNotFit("RESOURCE_EXHAUSTED: Used 17.50G of 15.75G hbm.").needed == int(17.5 * GIB)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["--topology=v5e:4"], "is not CHIP:SHAPE, such as v5p:4x4x4"),
        (["--topology=v5e:2x4", "--tensor", "2"], "are for --sweep"),
        (["--topology=v5e:2x4", "--sweep", "--find_batch"], "do not go together"),
        (["--topology=v5e:2x4", "--gin.BATCH_SIZE=6"], "BATCH_SIZE 6 does not divide"),
        (["--topology=v5e:2x4", "--gin.partitioning.Partitioner.fsdp=4"], "does not match the 8"),
        (
            [
                "--topology=v5e:2x4",
                "--gin.pipeline.DatasetConfig.pack=False",
                "--gin.TASK_FEATURE_LENGTHS={'encoder': 512, 'decoder': 513}",
            ],
            "without packing a row of 513 tokens is one example, and the model has 512 positions",
        ),
    ],
)
def test_mistakes(eight_devices, capsys, others, message):
    assert dispatcher.main(arguments(*others)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("length", [512, 2048])
def test_rows_longer_than_the_positions_hold_several_examples(
    eight_devices, capsys, monkeypatch, length
):
    monkeypatch.setattr(planning, "make_plan", some_plan)
    lengths = f"--gin.TASK_FEATURE_LENGTHS={{'encoder': {length}, 'decoder': 512}}"
    assert dispatcher.main(arguments("--topology=v5e:2x4", "--json", lengths)) == 0
    said = "rows of 2,048 tokens hold several examples, each of at most 512"
    assert (said in capsys.readouterr().err) == (length > 512)


def test_a_plan_and_a_run_compile_with_the_options_of_the_mesh_file(eight_devices):
    """On CPUs, which have no such options."""
    files = ["runs/structbert_pretrain.gin", *FILES[1:], "compiler/sparse_core.gin"]
    bindings = ["BATCH_SIZE = 8", "TASK_FEATURE_LENGTHS = {'encoder': 64}"]
    config = command.configure(files, bindings)
    with pytest.raises(PlugError, match="No such compile option: 'xla_"):
        planning.make_plan(config, eight_devices)
    with config.partitioner.context():
        program = train_program(config)
        with pytest.raises(PlugError, match="compiler_options are not for these devices"):
            compile_program(program.lower)


def test_without_the_tpu_compiler(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert dispatcher.main(arguments("--topology=v5e:2x4")) == 2
    assert "pip install 'plug-jax[tpu]'" in capsys.readouterr().err


@needs_compiler
def test_a_slice_that_does_not_exist(capsys):
    assert dispatcher.main(arguments("--topology=v5p:3x3x3")) == 2
    assert "--topology v5p:3x3x3: the TPU compiler says" in capsys.readouterr().err


def test_kept_activations_are_what_backward_loops_read():
    def loss(weights, x):
        def layer(x, w):
            return jax.checkpoint(lambda x, w: jax.numpy.sin(x @ w))(x, w), None

        return jax.lax.scan(layer, x, weights)[0].sum()

    weights, x = jax.numpy.zeros((3, 4, 4)), jax.numpy.zeros((5, 4))
    traced = jax.make_jaxpr(jax.grad(loss))(weights, x)
    assert kept_activations(traced.jaxpr) == 3 * 5 * 4 * 4  # each layer's input, float32
