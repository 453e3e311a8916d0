"""Which traits of a class are shared, of what kind, and what a class may not say."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterator
from typing import Any

import ipywidgets
import numpy as np
import pytest
import traitlets as t
from ipywidgets.widgets.trait_types import (
    ByteMemoryView,
    CByteMemoryView,
    Color,
    Datetime,
    TypedTuple,
    datetime_serialization,
)

from sharedwidgets import SharedState, background, computed
from sharedwidgets.core.protocol import TraitSchema
from sharedwidgets.core.values import same
from sharedwidgets.errors import InvalidValue
from sharedwidgets.traits import SharedTrait


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """ipywidgets holds every widget strongly until it is closed."""
    yield
    ipywidgets.Widget.close_all()


def made(trait: t.TraitType[Any, Any], name: str = "x") -> SharedTrait:
    """The trait as a class of its own shares it."""
    kind = type("Made", (SharedState,), {name: trait})
    return kind()._shared()[name]


def schema(trait: t.TraitType[Any, Any], name: str = "x") -> TraitSchema:
    return made(trait, name).schema


class Colour(enum.Enum):
    RED = 1


KINDS = [
    (t.Bool(), "bool"),
    (t.CBool(), "bool"),
    (t.Int(), "int"),
    (t.CInt(), "int"),
    (t.Integer(), "int"),
    (t.Float(), "float"),
    (t.CFloat(), "float"),
    (t.Unicode(), "text"),
    (t.CUnicode(), "text"),
    (t.ObjectName("name"), "text"),
    (t.DottedObjectName("a.b"), "text"),
    (Color("red"), "text"),
    (t.Bytes(), "bytes"),
    (t.CBytes(), "bytes"),
    (ByteMemoryView(), "bytes"),
    (CByteMemoryView(), "bytes"),
    (t.List(), "list"),
    (t.List(t.Int()), "list"),
    (t.List(t.List(t.Dict())), "list"),
    (t.List(t.Tuple(t.Int(), t.Unicode())), "list"),
    (t.Tuple(), "list"),
    (t.Tuple(t.Int(), t.Unicode(), default_value=(0, "")), "list"),
    (TypedTuple(t.Int()), "list"),
    (t.Dict(), "dict"),
    (t.Dict(value_trait=t.Float(), key_trait=t.Unicode()), "dict"),
    (t.Dict(per_key_traits={"a": t.Int()}), "dict"),
    (t.Any(), "any"),
    (t.Enum([1, "two", None], 1), "any"),
    (t.CaselessStrEnum(["Red", "Green"], "Red"), "any"),
    (t.Union([t.Int(), t.Unicode()]), "any"),
    (t.Union([t.Int(), t.List(t.Unicode())]), "any"),
]


@pytest.mark.parametrize(("trait", "kind"), KINDS, ids=lambda item: item if isinstance(item, str) else type(item).__name__)
def test_every_kind_with_a_wire_form(trait: t.TraitType[Any, Any], kind: str) -> None:
    assert schema(trait).kind == kind


class Thing:
    pass


REFUSED = [
    t.Instance(Thing, allow_none=True),
    t.Instance("datetime.datetime", allow_none=True),
    t.Type(),
    t.This(),
    t.ForwardDeclaredInstance("Thing"),
    t.ForwardDeclaredType("Thing"),
    t.Callable(allow_none=True),
    t.Set(),
    t.Complex(),
    t.CRegExp("a"),
    t.TCPAddress(),
    t.UseEnum(Colour),
    Datetime(),
    t.List(t.Instance(Thing)),
    t.List(t.List(t.Instance(Thing))),
    t.Tuple(t.Int(), t.Instance(Thing)),
    TypedTuple(t.Instance(ipywidgets.Widget)),
    t.Dict(value_trait=t.Instance(Thing)),
    t.Dict(key_trait=t.Int()),
    t.Dict(per_key_traits={"a": t.Instance(Thing)}),
    t.Union([t.Int(), t.Instance(Thing)]),
    t.List(ByteMemoryView()),
    t.Enum([Colour.RED]),
]


@pytest.mark.parametrize("trait", REFUSED, ids=lambda trait: trait.info()[:40] if trait.info() else type(trait).__name__)
def test_a_kind_without_wire_form_is_refused_when_the_class_is_made_and_says_what_to_do(trait: t.TraitType[Any, Any]) -> None:
    with pytest.raises(TypeError, match=r"(?s)Made\.x .*to_json=.*shared=False"):
        type("Made", (SharedState,), {"x": trait})


def test_such_a_kind_may_be_private() -> None:
    kind = type("Made", (SharedState,), {"x": t.Instance(Thing, allow_none=True).tag(shared=False), "y": t.Int()})
    assert set(kind()._shared()) == {"y"}


def test_a_new_traitlets_kind_is_a_conscious_decision() -> None:
    """Fails when traitlets brings a trait this file says nothing of."""
    known = {type(trait) for trait, _ in KINDS} | {type(trait) for trait in REFUSED}
    bases = {
        t.TraitType, t.ClassBasedTraitType, t.Container, t.FuzzyEnum,
        t.Long, t.CLong, t.CComplex, getattr(t, "Path", t.Int),
    }  # fmt: skip
    every = {item for item in vars(t).values() if isinstance(item, type) and issubclass(item, t.TraitType)}
    assert {item.__name__ for item in every - known - bases} == set()


def test_bounds_are_part_of_the_schema() -> None:
    assert schema(t.Int(min=0, max=10)) == TraitSchema(kind="int", min=0, max=10)
    assert schema(t.Float(0.5, min=0.0, max=float("inf"))) == TraitSchema(kind="float", min=0.0)
    assert schema(t.CInt()) == TraitSchema(kind="int")


@pytest.mark.parametrize(("trait", "nullable"), [(t.Int(), False), (t.Int(None, allow_none=True), True)])
def test_null_is_part_of_the_schema(trait: t.TraitType[Any, Any], nullable: bool) -> None:
    assert schema(trait).nullable is nullable


def test_choices_are_part_of_the_schema() -> None:
    assert schema(t.Enum(["a", "b"], "a")) == TraitSchema(kind="any", choices=("a", "b"))
    assert schema(t.Enum(["a"], allow_none=True)) == TraitSchema(kind="any", choices=("a", None), nullable=True)
    assert schema(t.CaselessStrEnum(["Red"], "Red")).choices == ("Red",)


def test_a_choice_comes_back_as_the_choice_it_was() -> None:
    trait = made(t.Enum([(1, 2), (3, 4)], (1, 2)))
    assert trait.from_wire(trait.to_wire((3, 4), None), None) == (3, 4)


@pytest.mark.parametrize(
    ("trait", "value"),
    [
        (t.Tuple(t.Int(), t.Unicode()), (1, "a")),
        (TypedTuple(t.Int()), (1, 2)),
        (t.List(t.Tuple()), [(1, 2)]),
        (ByteMemoryView(), memoryview(b"ab")),
        (CByteMemoryView(), memoryview(b"ab")),
        (t.Bytes(), b"ab"),
        (t.Dict(), {"a": [1, None]}),
        (t.Union([t.Int(), t.Tuple(t.Int())]), (1,)),
    ],
    ids=lambda item: type(item).__name__,
)
def test_a_value_survives_the_wire_and_the_trait(trait: t.TraitType[Any, Any], value: Any) -> None:
    kind = type("Made", (SharedState,), {"x": trait})
    owner = kind(x=value)
    shared = owner._shared()["x"]
    back = owner._accepted("x", shared.from_wire(shared.to_wire(owner.x, owner), owner))
    assert back == value
    assert type(back) is type(value)


def test_what_comes_from_the_wire_is_a_fresh_object() -> None:
    trait = made(t.List())
    held: list[Any] = [{"a": 1}]
    fresh = trait.from_wire(held, None)
    fresh[0]["a"] = 2
    assert held == [{"a": 1}]


def test_datetime_travels_with_the_serializer_of_ipywidgets() -> None:
    kind = type("Made", (SharedState,), {"x": Datetime(None, allow_none=True).tag(**datetime_serialization)})
    owner = kind()
    trait = owner._shared()["x"]
    when = datetime.datetime(2026, 2, 3, 4, 5, 6, 7008, datetime.timezone.utc)
    wire = trait.to_wire(when, owner)
    assert isinstance(wire, dict)
    assert owner._accepted("x", trait.from_wire(wire, owner)) == when
    assert trait.to_wire(None, owner) is None
    assert trait.schema.kind == "any"  # an atom, whatever its JSON looks like


def test_numpy_travels_with_a_pair_of_functions() -> None:
    pair = {
        "to_json": lambda array, widget: {"shape": list(array.shape), "data": array.tobytes()},
        "from_json": lambda told, widget: np.frombuffer(told["data"]).reshape(told["shape"]),
    }
    kind = type("Made", (SharedState,), {"x": t.Instance(np.ndarray, args=((0,),)).tag(**pair)})
    owner = kind()
    trait = owner._shared()["x"]
    array = np.arange(6.0).reshape(2, 3)
    wire = trait.to_wire(array, owner)
    assert same(wire, {"shape": [2, 3], "data": array.tobytes()})
    assert np.array_equal(trait.from_wire(wire, owner), array)


def test_one_function_of_the_pair_is_not_enough() -> None:
    with pytest.raises(TypeError, match=r"Made\.x has only one of to_json and from_json"):
        type("Made", (SharedState,), {"x": t.Any().tag(to_json=lambda value, widget: 1)})


def test_a_serializer_that_fails_is_an_invalid_value_that_names_the_trait() -> None:
    def fail(value: Any, widget: Any) -> Any:
        raise ZeroDivisionError("no")

    trait = made(t.Any().tag(to_json=fail, from_json=fail), "_x")
    with pytest.raises(InvalidValue, match=r"to_json of _x failed with ZeroDivisionError: no") as caught:
        trait.to_wire(1, None)
    assert caught.value.trait == "_x"


def test_a_widget_inside_a_trait_is_refused() -> None:
    trait = t.Instance(ipywidgets.Widget, allow_none=True).tag(**ipywidgets.widget_serialization)
    with pytest.raises(TypeError, match=r"Made\.x holds a widget.*shared=False"):
        type("Made", (SharedState,), {"x": trait})


def test_who_may_see_a_trait() -> None:
    class Made(SharedState):
        public = t.Int()
        _kernels = t.Int()
        quiet = t.Int().tag(sync=False)
        own = t.Int().tag(shared=False)
        _own = t.Int().tag(shared=False)

    state = Made()
    kernel_only = {name: trait.schema.kernel_only for name, trait in state._shared().items()}
    assert kernel_only == {"public": False, "_kernels": True, "quiet": True}
    assert {"public", "own"} <= set(state.keys)
    assert not {"_kernels", "quiet", "_own"} & set(state.keys)
    assert state._link["traits"] == ["public"]


def test_an_underscore_never_asks_to_be_synced() -> None:
    with pytest.raises(TypeError, match=r"Made\._x begins with an underscore.*rename"):
        type("Made", (SharedState,), {"_x": t.Int().tag(sync=True)})


RESERVED = [
    "link_to", "link_to_async", "unlink", "linked_to", "linked_from", "room", "lock", "locked_by", "transaction", "increment",
    "compare_and_set", "last_change", "live", "pull", "flush", "changed", "wait_until",
]  # fmt: skip
OF_ANYWIDGET = ["layout", "comm", "keys", "open", "close", "send", "observe", "hold_sync", "tooltip", "traits", "_link"]


@pytest.mark.parametrize("name", RESERVED + OF_ANYWIDGET)
def test_a_name_that_hides_one_of_ours_is_refused_and_says_what_to_do(name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"Made\.{name} hides a name of SharedState; rename the trait, for example to {name}_value"
    ):
        type("Made", (SharedState,), {name: t.Int()})


def test_no_trait_takes_the_place_of_what_an_object_keeps() -> None:
    """`_private = t.Bool()` was taken, and the constructor failed with an error about a dict."""

    class Used(SharedState):
        x = t.Int(0)

        @computed
        def y(self) -> int:
            return self.x

        @background
        async def work(self) -> None:
            """It is begun, and notes itself."""

    used = Used(x=1)
    used.observe(lambda change: None, "y")
    with used.lock(), used.transaction():
        used.x = 2
    used.work().cancel()
    used.hold_sync().__enter__()
    kept = set(vars(used)) - set(dir(SharedState))
    assert {"_bridge", "_private", "_parts", "_mutex"} <= kept
    for name in kept:
        with pytest.raises(TypeError, match=f"hides a name of SharedState.*{name}_value"):
            type("Made", (SharedState,), {name: t.Int()})


def test_a_mixin_may_not_hide_them_either() -> None:
    class Mixin(t.HasTraits):
        lock = t.Int()

    with pytest.raises(TypeError, match=r"Made\.lock hides"):
        type("Made", (Mixin, SharedState), {})


def test_a_mixins_traits_are_shared_and_the_mixin_is_not_changed() -> None:
    class Mixin(t.HasTraits):
        count = t.Int(3)
        tags = t.List(t.Unicode(), default_value=["a"])

        @t.validate("count")
        def _positive(self, proposal: Any) -> int:
            return max(0, proposal.value)

    for bases in ((Mixin, SharedState), (SharedState, Mixin)):
        kind = type("Made", bases, {})
        state = kind()
        assert set(state._shared()) == {"count", "tags"}
        assert (state.count, state.tags) == (3, ["a"])
        state.count = -1
        assert state.count == 0
        assert {"count", "tags"} <= set(state.keys)
    assert "sync" not in Mixin.class_traits()["count"].metadata
    assert Mixin.class_traits()["count"].this_class is Mixin
    assert not isinstance(Mixin(), ipywidgets.Widget)


def test_the_first_of_two_mixins_wins_as_in_python() -> None:
    class One(t.HasTraits):
        x = t.Int(1)

    class Two(t.HasTraits):
        x = t.Unicode("two")

    assert type("Made", (One, Two, SharedState), {})().x == 1


def test_an_inherited_trait_is_shared_under_the_name_of_the_subclass() -> None:
    class Base(SharedState):
        x = t.Int(1)

    class Child(Base):
        y = t.Int(2)

    assert set(Child()._shared()) == {"x", "y"}
    assert Child._state_name() == "Child"
    assert Child()._state_name() == "Child"
    assert Base._state_name() == "Base"


def test_a_subclass_may_say_a_trait_anew() -> None:
    class Base(SharedState):
        x = t.Int(1)

    class Child(Base):
        x = t.Unicode("now text")

    assert Child()._shared()["x"].schema.kind == "text"
    assert Base()._shared()["x"].schema.kind == "int"


def test_class_options() -> None:
    class Base(SharedState, state_name="c", delivery="thread"):
        x = t.Int()

    class Child(Base):
        pass

    assert (Base._state_name(), Base._mode()) == ("c", "thread")
    assert (Child._state_name(), Child._mode()) == ("Child", "thread")
    assert Base()._state_name() == "c"


def test_an_unknown_class_option_is_refused() -> None:
    with pytest.raises(TypeError, match=r"class Made has an unknown option 'state_nam'; there are state_name, delivery"):

        class Made(SharedState, state_nam="c"):
            pass


@pytest.mark.parametrize(
    ("options", "words"),
    [({"delivery": "asnyc"}, "delivery"), ({"state_name": ""}, "state_name"), ({"state_name": 3}, "state_name")],
)
def test_a_class_option_with_a_wrong_value_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=rf"class Made.*{words}"):
        type(SharedState)("Made", (SharedState,), {}, **options)


def test_an_unknown_constructor_keyword_is_refused_and_the_traits_are_named() -> None:
    class Made(SharedState):
        count = t.Int()
        draft = t.Unicode().tag(shared=False)

    with pytest.raises(TypeError, match=r"Made has no trait 'rooom'; it has count, draft"):
        Made(rooom="x")
    assert Made(count=3).count == 3


def test_traits_added_to_one_object_are_checked_like_those_of_a_class() -> None:
    class Made(SharedState, state_name="c"):
        x = t.Int()

    state, other = Made(), Made()
    state.add_traits(extra=t.Int(5), _quiet=t.Int(6))
    assert set(state._shared()) == {"x", "extra", "_quiet"}
    assert set(other._shared()) == {"x"}
    assert "extra" in state.keys
    assert "_quiet" not in state.keys
    assert state._state_name() == "c"
    assert {name: item.default for name, item in state._wanted().schema.items()} == {"x": 0, "extra": 5, "_quiet": 6}
    with pytest.raises(TypeError, match="hides"):
        state.add_traits(lock=t.Int())
    with pytest.raises(TypeError, match="no wire form"):
        state.add_traits(thing=t.Instance(Thing))


def test_defaults_are_those_of_a_fresh_object() -> None:
    class Made(SharedState):
        static = t.Int(1)
        dynamic = t.Unicode()
        items = t.List(t.Int(), default_value=[1, 2])

        @t.default("dynamic")
        def _make(self) -> str:
            return "made"

    state = Made(static=9, dynamic="mine", items=[])
    defaults = {name: item.default for name, item in state._wanted().schema.items()}
    assert defaults == {"static": 1, "dynamic": "made", "items": [1, 2]}


def test_a_default_without_wire_form_names_the_trait() -> None:
    class Made(SharedState):
        x = t.Any(object())

    with pytest.raises(InvalidValue, match=r"the default of Made\.x has no wire form.*object"):
        Made()._wanted()
