"""What of some code runs, what of that checks something, and how far the values of a program reach: for ``checks``."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

RAISING = ("assert", "fail", "raises")  # how calls begin that raise; of imported functions also:
IMPORTED = (*RAISING, "check", "verify", "validate", "expect", "require", "ensure")
ENDING = ("exit", "_exit", "abort", "quit")
ANYTHING = frozenset(["exec", "eval", "globals", "locals", "vars"])  # by these any name can be reached
TAKEN = frozenset(["AssertionError", "Exception", "BaseException"])  # what takes an assertion's error
Function = ast.FunctionDef | ast.AsyncFunctionDef
_MAIN = ("__name__ == '__main__'", "'__main__' == __name__")


class _Seen(NamedTuple):
    """What stands in a piece of code, however deep."""

    names: frozenset[str]
    stored: frozenset[str]
    calls: tuple[ast.Call, ...]
    yields: bool = False


class _Check(NamedTuple):
    names: frozenset[str]  # that decide it: its own, and those of the conditions around it
    taken: bool  # whether a handler takes its error
    constant: bool = False  # whether it is the same for every program


class Walk:
    """What of some modules runs, what of that checks, and which names the program's values reach."""

    def __init__(self, trees: Sequence[ast.Module], wanted: frozenset[str] | set[str], given: frozenset[str]) -> None:
        self.memory: dict[int, _Seen] = {}
        everything = [node for tree in trees for node in _statements(tree.body)]
        self.functions = {n.name: n for n in everything if isinstance(n, Function | ast.ClassDef)}
        imports = [node for node in everything if isinstance(node, ast.Import | ast.ImportFrom)]
        self.imported = {alias.asname or alias.name for node in imports for alias in node.names}
        self.checks: list[_Check] = []
        self.steps: list[tuple[frozenset[str], frozenset[str]]] = []  # names read, and names that then depend on them
        self.mentioned: set[str] = set()
        self.done: set[str] = set()
        self.reached = {*wanted, *given, *ANYTHING}
        self.depth = 0  # of functions
        for tree in trees:
            self.block(tree.body, frozenset(), False)
        if given:
            self.call("check")
        while more := {name for read, made in self.steps if read & self.reached for name in made} - self.reached:
            self.reached |= more

    def conclude(self, check: ast.stmt | None) -> None:
        """ValueError where nothing is checked."""
        if any(not c.taken and not c.constant and c.names & self.reached for c in self.checks):
            return
        idle = [name for name, node in self.functions.items() if name not in self.done and self.asserts(node)]
        if isinstance(check, ast.FunctionDef) and "check" in idle:
            reason = "nobody calls check; set entry_point, or call it"
        elif check is not None and not isinstance(check, Function):
            reason = "check is no function with assertions"
        elif idle:
            reason = f"nobody calls {idle[0]}"
        elif any(not c.constant and c.names & self.reached for c in self.checks):
            reason = "handlers take the errors of their assertions"
        elif any(not c.constant for c in self.checks):
            reason = "nothing of the program reaches an assertion"
        elif self.checks:
            reason = "their assertions hold for any program"
        else:
            reason = "no assertion in them runs"
        raise ValueError(f"the tests check nothing: {reason}")

    def asserts(self, node: ast.stmt) -> bool:
        """Whether there is an assertion in a piece of code, whoever runs it."""
        calls = any(_called(call).startswith(RAISING) for call in self.seen(node).calls)
        return calls or any(isinstance(inner, ast.Assert) for inner in _statements([node]))

    def seen(self, node: ast.AST) -> _Seen:
        """What stands in a piece of code; each is looked at once."""
        if id(node) not in self.memory:
            names, stored, calls, yields, nodes = set(), set(), list[ast.Call](), False, [node]
            parts: list[_Seen] = []
            while nodes:
                inner = nodes.pop()
                for part in ast.iter_child_nodes(inner):
                    if isinstance(part, ast.stmt):
                        parts.append(self.seen(part))
                    elif not isinstance(part, ast.Constant):
                        nodes.append(part)
                if isinstance(inner, ast.Name):
                    names.add(inner.id)
                    stored |= {inner.id} if isinstance(inner.ctx, ast.Store) else set()
                elif isinstance(inner, ast.Call):
                    calls.append(inner)
                yields = yields or isinstance(inner, ast.Yield | ast.YieldFrom)
            if isinstance(node, ast.Assign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                stored |= {_base(target) for target in targets}
            own = isinstance(node, ast.stmt) and not isinstance(node, Function)
            self.memory[id(node)] = _Seen(
                frozenset(names).union(*(part.names for part in parts)),
                frozenset(stored).union(*(part.stored for part in parts)),
                (*calls, *(call for part in parts for call in part.calls)),
                yields or any(part.yields for part in parts if own),
            )
            if isinstance(node, Function):
                body = [self.seen(part) for part in node.body if not isinstance(part, Function | ast.ClassDef)]
                self.memory[id(node)] = self.memory[id(node)]._replace(yields=any(part.yields for part in body))
        return self.memory[id(node)]

    def call(self, name: str, alone: bool = True) -> None:
        """A function, or a class with its methods, that something names: it runs.

        Args:
          name: any.
          alone: whether nothing uses what it returns, so that a generator, or a coroutine, does not begin.
        """
        node = self.functions.get(name)
        if node is None or name in self.done:
            return
        names = self.seen(node).names
        self.steps.append((names, frozenset([name])))
        if isinstance(node, ast.ClassDef):
            if any("TestCase" in ast.unparse(base) for base in node.bases):
                self.mentioned |= names
                return  # its methods run where somebody looks at what they found, and that is then the check
            self.done.add(name)
            for inner in node.body:
                if isinstance(inner, Function):
                    self.call(inner.name, alone=False)
            return
        if alone and (isinstance(node, ast.AsyncFunctionDef) or self.seen(node).yields):
            return
        self.done.add(name)
        given = node.args
        every = (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg)
        self.steps.append((frozenset([f"{name}()"]), frozenset(argument.arg for argument in every if argument)))
        self.depth += 1
        self.block(node.body, frozenset(), False)
        self.depth -= 1

    def block(self, body: Sequence[ast.stmt], around: frozenset[str], taken: bool, top: bool = True) -> None:
        """Statements that run in turn, up to one that leaves them.

        Args:
          body: the statements.
          around: names of the conditions around them.
          taken: whether a handler around them takes an assertion's error.
          top: whether there is no condition around them.
        """
        for node in body:
            if isinstance(node, Function | ast.ClassDef):
                self.mention(node.decorator_list)
                inner = [] if isinstance(node, Function) else [n for n in node.body if not isinstance(n, Function)]
                self.block(inner, around, taken, top)
            elif parts := _inner_blocks(node):
                seen = self.seen(node)
                self.mention([n for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr | ast.withitem)])
                self.steps.append((seen.names, seen.stored))
                for head in (n for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr | ast.withitem)):
                    self.calls(head, seen.names, around, taken, top=False)
                for part, caught in parts:
                    self.block(part, around | seen.names, taken or caught, False)
            else:
                self.simple(node, around, taken, top and not self.depth)
            if isinstance(node, ast.Return | ast.Raise | ast.Continue | ast.Break):
                return

    def simple(self, node: ast.stmt, around: frozenset[str], taken: bool, top: bool) -> None:
        """A statement without others in it."""
        names = self.seen(node).names
        self.mention([node])
        self.calls(node, names, around, taken, top)
        always = isinstance(node, ast.Raise)
        if isinstance(node, ast.Assert):
            value = _constant(node.test)
            always = value is False
            self.checks.append(_Check(names | (around if always else frozenset()), taken, value is True))
        elif always:
            self.checks.append(_Check(around, taken))
        if always and top and not taken:
            raise ValueError(f"no program passes the tests: line {node.lineno} always fails")

    def calls(self, node: ast.AST, names: frozenset[str], around: frozenset[str], taken: bool, top: bool) -> None:
        """The calls of a piece of code: checks, and where values go."""
        seen = self.seen(node)
        based = {_base(part) for call in seen.calls for part in (call.func, *call.args)}
        self.steps.append((names, seen.stored | based))
        for call in seen.calls:
            called, plain = _called(call), isinstance(call.func, ast.Name)
            if called in self.functions:
                passed = [self.seen(each).names for each in (*call.args, *(k.value for k in call.keywords))]
                self.steps.append((frozenset[str]().union(*passed), frozenset([f"{called}()"])))
            elif called.startswith(IMPORTED if called in self.imported else () if plain else RAISING):
                self.checks.append(_Check(names, taken))
            elif called in ENDING or called in ("exec", "eval"):
                self.checks.append(_Check(names | around, taken))
                if top and called in ENDING:
                    raise ValueError(f"no program passes the tests: line {call.lineno} ends it")

    def mention(self, nodes: Iterable[ast.AST]) -> None:
        """What some code names runs, as far as it can; what looks functions up by their names may run them all."""
        for node in nodes:
            seen = self.seen(node)
            found = {*seen.names, *(_called(call) for call in seen.calls)}
            self.mentioned |= found
            alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and len(seen.calls) == 1
            for name in list(self.functions) if found & ANYTHING else found:
                self.call(name, alone)


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, and those in them."""
    nodes: list[ast.AST] = list(body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.stmt):
            yield node
        nodes += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt | ast.excepthandler | ast.match_case)]


def _base(node: ast.AST) -> str:
    """The name at the beginning of a.b[c].d; '' where it begins otherwise."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.Starred):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _called(call: ast.Call) -> str:
    """The last name of what is called."""
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def _constant(node: ast.expr) -> bool | None:
    """Whether an expression is true for every program; None where that depends."""
    if isinstance(node, ast.Constant):
        return bool(node.value)
    if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict):
        return bool(getattr(node, "elts", getattr(node, "keys", [])))
    if isinstance(node, ast.JoinedStr | ast.Lambda | ast.GeneratorExp):
        return True
    if isinstance(node, ast.Call) and _called(node) in ("items", "keys", "values", "range") and _nothing(node):
        return False
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        inner = _constant(node.operand)
        return None if inner is None else not inner
    if isinstance(node, ast.BoolOp):
        values = [_constant(value) for value in node.values]
        decided = isinstance(node.op, ast.Or)
        return decided if decided in values else None if None in values else not decided
    if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name | ast.Constant) and ast.unparse(node) in _MAIN:
        return False  # the module's name is another
    if isinstance(node, ast.Name) and node.id == "TYPE_CHECKING":
        return False
    return None


def _nothing(call: ast.Call) -> bool:
    """Whether range(0), or the items of an empty dictionary, are called for."""
    if isinstance(call.func, ast.Attribute):
        return _constant(call.func.value) is False
    return len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0


def _inner_blocks(node: ast.stmt) -> list[tuple[list[ast.stmt], bool]]:
    """The blocks of a statement that can run, and whether an assertion's error ends in it."""
    if isinstance(node, ast.If | ast.While):
        value = _constant(node.test)
        parts = [] if value is False else [(node.body, False)]
        return [*parts, *([] if value is True else [(node.orelse, False)])] or [([], False)]
    if isinstance(node, ast.For | ast.AsyncFor):
        return [*([] if _constant(node.iter) is False else [(node.body, False)]), (node.orelse, False)]
    if isinstance(node, ast.With | ast.AsyncWith):
        calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
        return [(node.body, any(_called(c) == "suppress" and _takes(c.args) for c in calls))]
    if isinstance(node, ast.Try | ast.TryStar):
        leaves = any(isinstance(n, ast.Return | ast.Break | ast.Continue) for s in node.finalbody for n in ast.walk(s))
        takes = leaves or any(_swallows(handler) for handler in node.handlers)
        handlers = [(handler.body, leaves) for handler in node.handlers]
        return [(node.body, takes), *handlers, (node.orelse, leaves), (node.finalbody, False)]
    if isinstance(node, ast.Match):
        return [(case.body, False) for case in node.cases]
    return []


def _swallows(handler: ast.ExceptHandler) -> bool:
    """Whether a handler takes an assertion's error and goes on."""
    nodes = [node for inner in handler.body for node in ast.walk(inner)]
    calls = [node for node in nodes if isinstance(node, ast.Call) and _called(node).startswith((*RAISING, *ENDING))]
    raised = calls or any(isinstance(node, ast.Raise | ast.Assert) for node in nodes)
    return not raised and (handler.type is None or _takes([handler.type]))


def _takes(kinds: Iterable[ast.expr]) -> bool:
    return any(getattr(n, "id", getattr(n, "attr", "")) in TAKEN for kind in kinds for n in ast.walk(kind))
