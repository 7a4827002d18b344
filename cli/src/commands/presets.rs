//! `anybit presets`.

use anybit_shared::spec::{JobSpec, preset};
use serde::Serialize;

use crate::args::{Format, Global};
use crate::error::Failure;
use crate::out::{self, Table};

#[derive(Serialize)]
struct Preset {
    name: &'static str,
    about: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<JobSpec>,
    toml: &'static str,
}

impl Preset {
    fn of(name: &'static str, toml: &'static str) -> Self {
        let comment = toml.lines().map_while(|line| line.strip_prefix('#'));
        let about = comment.map(str::trim).collect::<Vec<_>>().join(" ");
        Self { name, about, spec: JobSpec::from_toml(toml).ok(), toml }
    }
}

pub(crate) fn presets(global: &Global, name: Option<&str>) -> Result<(), Failure> {
    let all = || preset::names().into_iter().filter_map(|name| Some(Preset::of(name, preset::text(name)?)));
    let Some(name) = name else {
        let all: Vec<Preset> = all().collect();
        return out::answer(global.output, &all, || {
            let mut table = Table::new(&["NAME", "MODEL", "BITS", "ABOUT"]).elastic(3);
            for preset in &all {
                let (model, bits) = preset.spec.as_ref().map_or_else(Default::default, |spec| {
                    let bits: Vec<String> = spec.model.bits.iter().map(ToString::to_string).collect();
                    (spec.model.name.as_str().to_owned(), bits.join(","))
                });
                table.row(vec![preset.name.to_owned(), model, bits, preset.about.clone()]);
            }
            table.render(out::terminal_columns())
        });
    };
    let preset = all().find(|preset| preset.name == name).ok_or_else(|| {
        Failure::NotFound(format!("there is no preset {name:?}: there are {}", preset::names().join(", ")))
    })?;
    match global.output {
        Format::Table => out::print(preset.toml),
        Format::Json => out::json(&preset),
    }
}
