"""The controller's database: tables, queries by noun, migrations, and the one way to write."""

from serai.controller.store.failure import StoreUnavailableError, until_it_works
from serai.controller.store.jobs import JobRecord
from serai.controller.store.resources import RawPage
from serai.controller.store.store import Store, Transaction, View

__all__ = ["JobRecord", "RawPage", "Store", "StoreUnavailableError", "Transaction", "View", "until_it_works"]
