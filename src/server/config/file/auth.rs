//! Reads `[auth]`, `[[tenant]]` and `[[route]]`: each value on its own, with its line.

use serde::{Serialize, de::DeserializeOwned};
use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue},
};

use super::{Key, Reader, lenient, normalized, owned, unknown_key, written};
use crate::{
    config::{
        auth::{
            ANONYMOUS, AUTH, AnonymousTable, AuthSection, AuthTable, CertificateTable, KeyTable, LISTS,
            OperatorTable, TokenTable,
        },
        sink::{ROUTE, RouteTable},
        tenant::{TENANT, TenantTable},
    },
    sources::kind::field_names,
};

impl Reader<'_> {
    pub(super) fn auth(&mut self, key: &Key<'_>, value: &Spanned<DeValue<'_>>) {
        let Some(table) = value.get_ref().as_table() else {
            return self.refuse(key, AUTH, format!("must be a table: [{AUTH}]"));
        };
        let mut section = AuthSection::default();
        section.places.insert(AUTH.into(), (self.line_of(key), format!("[{AUTH}]")));
        let problems = self.file.problems.len();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let path = format!("{AUTH}.{name}");
            match name {
                _ if LISTS.contains(&name) => self.auth_list(&mut section, name, key, value),
                ANONYMOUS => match value.get_ref().as_table() {
                    Some(table) => {
                        let line = self.line_of(key);
                        let values = self.auth_table::<AnonymousTable>(&mut section, &path, line, table);
                        section.values.insert(name.into(), values.into());
                    }
                    None => self.refuse(key, &path, format!("must be a table: [{path}]")),
                },
                _ => {
                    let value = self.auth_value::<AuthTable>(&mut section, AUTH, key, value);
                    section.values.extend(value.map(|value| (name.to_owned(), value)));
                }
            }
        }
        if self.file.problems.len() > problems {
            self.file.broken.push(AUTH.into());
        }
        self.file.auth = Some(section);
    }

    /// Reads the `[[tenant]]` tables.
    pub(super) fn tenants(&mut self, key: &Key<'_>, value: &Spanned<DeValue<'_>>) {
        self.file.tenants = self.tables::<TenantTable>(TENANT, key, value).or(self.file.tenants.take());
    }

    /// Reads the `[[route]]` tables.
    pub(super) fn routes(&mut self, key: &Key<'_>, value: &Spanned<DeValue<'_>>) {
        self.file.routes = self.tables::<RouteTable>(ROUTE, key, value).or(self.file.routes.take());
    }

    /// Reads a list of tables that have the keys of `T`.
    fn tables<T: Serialize + DeserializeOwned + Default>(
        &mut self,
        name: &str,
        key: &Key<'_>,
        value: &Spanned<DeValue<'_>>,
    ) -> Option<AuthSection> {
        let Some(items) = value.get_ref().as_array() else {
            self.refuse(key, name, format!("must be a list of tables: [[{name}]]"));
            return None;
        };
        let (mut section, mut tables) = (AuthSection::default(), Vec::new());
        let problems = self.file.problems.len();
        for (at, item) in items.iter().enumerate() {
            let line = self.line_at(item.span().start);
            match item.get_ref().as_table() {
                Some(table) => {
                    let path = format!("{name}[{at}]");
                    tables.push(self.auth_table::<T>(&mut section, &path, line, table).into());
                }
                None => self.refuse_at(line, name, format!("must be a list of tables: [[{name}]]")),
            }
        }
        section.values.insert(name.into(), Value::Array(tables));
        if self.file.problems.len() > problems {
            self.file.broken.push(name.into());
        }
        Some(section)
    }

    fn auth_list(
        &mut self,
        section: &mut AuthSection,
        name: &str,
        key: &Key<'_>,
        value: &Spanned<DeValue<'_>>,
    ) {
        let named = format!("{AUTH}.{name}");
        let Some(items) = value.get_ref().as_array() else {
            return self.refuse(key, &named, format!("must be a list of tables: [[{named}]]"));
        };
        let mut values = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let line = self.line_at(item.span().start);
            let Some(table) = item.get_ref().as_table() else {
                self.refuse_at(line, &named, format!("must be a list of tables: [[{named}]]"));
                continue;
            };
            let path = format!("{named}[{at}]");
            let table = match name {
                "key" => self.auth_table::<KeyTable>(section, &path, line, table),
                "token" => self.auth_table::<TokenTable>(section, &path, line, table),
                "operator" => self.auth_table::<OperatorTable>(section, &path, line, table),
                _ => self.auth_table::<CertificateTable>(section, &path, line, table),
            };
            values.push(Value::Table(table));
        }
        section.values.insert(name.into(), values.into());
    }

    /// The valid values of a table. `T` has its keys.
    fn auth_table<T: Serialize + DeserializeOwned + Default>(
        &mut self,
        section: &mut AuthSection,
        path: &str,
        line: usize,
        table: &DeTable<'_>,
    ) -> Table {
        section.places.insert(path.into(), (line, named_as_written(path)));
        let mut values = Table::new();
        for (key, value) in table {
            let value = self.auth_value::<T>(section, path, key, value);
            values.extend(value.map(|value| (key.get_ref().to_string(), value)));
        }
        values
    }

    fn auth_value<T: Serialize + DeserializeOwned + Default>(
        &mut self,
        section: &mut AuthSection,
        path: &str,
        key: &Key<'_>,
        value: &Spanned<DeValue<'_>>,
    ) -> Option<Value> {
        let name = key.get_ref().as_ref();
        let named = format!("{}.{name}", named_as_written(path).trim_matches(['[', ']']));
        let known = field_names::<T>();
        if !known.contains(&name) {
            let tables = LISTS.into_iter().chain([ANONYMOUS]).filter(|_| path == AUTH);
            self.refuse(key, &named, unknown_key(name, known.iter().copied().chain(tables)));
            return None;
        }
        section.places.insert(format!("{path}.{name}"), (self.line_of(key), named.clone()));
        match lenient(written(&T::default()), normalized::<T>, &[name], owned(value)) {
            Ok(value) => Some(value),
            Err(text) => {
                self.refuse(key, &named, text);
                None
            }
        }
    }
}

/// `auth.key[0]` as the operator wrote it: `[[auth.key]]`.
fn named_as_written(path: &str) -> String {
    match path.split_once('[') {
        Some((name, _)) => format!("[[{name}]]"),
        None => format!("[{path}]"),
    }
}
