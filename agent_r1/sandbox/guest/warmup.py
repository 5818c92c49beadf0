"""Run each library once in the zygote, so that programs inherit what the first use costs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

_FIRST_USES = {
    "numpy": "import numpy as n; n.linalg.det(n.eye(3)); n.random.seed(0); n.random.default_rng(0)"
    "; repr(n.arange(9.0).reshape(3, 3) @ n.eye(3)); n.linalg.inv(n.eye(2))",
    "sympy": "import sympy as s; x, y = s.symbols('x y'); str(s.solve(x**2 - 5*x + 6, x))"
    "; str(s.simplify(s.sin(x)**2 + s.cos(x)**2)); str(s.integrate(x*s.exp(x), x))"
    "; str(s.solve([x + y - 3, x - y - 1], [x, y])); str(s.factor(x**3 - 1))"
    "; str(s.N(s.sqrt(2), 20)); s.latex(x**2 / 3); str(s.Matrix([[1, 2], [3, 4]]).det())"
    "; s.factorint(360); s.isprime(97); str(s.series(s.sin(x), x, 0, 4)); str(s.limit(1/x, x, 1))",
    "scipy": "import scipy.optimize as o; o.minimize(lambda v: (v[0] - 1)**2, [0.0])",
    "pandas": "import pandas as p; str(p.DataFrame({'a': [1, 2], 'b': ['x', 'y']}).describe())",
    "re": r"import re; re.sub(r'(\d+)\s*x', r'\1', '12 x')",
    "json": "import json; json.dumps(json.loads('[1, {\"a\": 2.5}]'))",
    "decimal": "import decimal; decimal.Decimal(1) / 3",
    "fractions": "import fractions; fractions.Fraction('1/3') + 1",
    "datetime": "import datetime; datetime.datetime.strptime('2000-01-02', '%Y-%m-%d')",
}


def warm(modules: Iterable[str]) -> None:
    """A library whose first use fails here fails in the program too, and visibly there."""
    for name in modules:
        source = _FIRST_USES.get(name)
        if source is not None:
            with contextlib.suppress(Exception):
                exec(source, {})
