//! A report as data: what it says, in which order. `markdown` and `page` write down the same one.

use serde::Serialize;

use super::charts::Chart;
use super::definitions::{DEFINITIONS, Definitions};
use super::projected::Projected;
use super::strip::{self, KeyFigure};
use super::table::Table;
use super::{answers, changes, configuration, interference, lossy, projected, provenance, tables};
use crate::metrics::Record;
use crate::metrics::summary::Summary;

/// Title of the section of alarms, which the page sets apart.
pub(super) const DOUBTS: &str = "What makes the figures doubtful";

/// A whole report.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    /// The finding.
    pub(super) title: String,
    /// In the order read.
    pub(super) sections: Vec<Section>,
    /// What its words mean, for the page that stands alone.
    pub(super) definitions: Definitions,
    /// The command and the revision that made the run.
    pub(super) stamp: Vec<Block>,
}

/// Blocks under a heading.
#[derive(Debug, Serialize)]
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) blocks: Vec<Block>,
}

/// What a section is made of. Texts are plain; who writes them down escapes them.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Block {
    /// A paragraph.
    Text {
        text: String,
    },
    /// Items, each with what stands out in front of it.
    List {
        items: Vec<Item>,
    },
    /// The figures that answer first.
    Strip {
        figures: Vec<KeyFigure>,
    },
    Table(Table),
    Chart(Chart),
    /// As a shell takes it.
    Code {
        text: String,
    },
}

/// An item of a list.
#[derive(Debug, Serialize)]
pub(super) struct Item {
    /// In bold; may be all there is.
    pub(super) lead: String,
    pub(super) text: String,
}

impl Block {
    /// A paragraph.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }

    /// A list of plain items.
    pub(super) fn list(items: impl IntoIterator<Item = String>) -> Self {
        let item = |text| Item {
            lead: String::new(),
            text,
        };
        Self::List {
            items: items.into_iter().map(item).collect(),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Text { text } | Self::Code { text } => text.trim().is_empty(),
            Self::List { items } => items.is_empty(),
            Self::Strip { figures } => figures.is_empty(),
            Self::Table(table) => table.is_empty(),
            Self::Chart(_) => false,
        }
    }
}

impl Document {
    /// Of one run.
    pub(super) fn of_run(
        record: &Record,
        summary: &Summary,
        projected: &Projected,
        charts: Vec<Chart>,
    ) -> Self {
        let none = "nothing was measured".to_owned();
        let mut document = Self {
            title: summary.verdict.clone().unwrap_or(none),
            sections: Vec::new(),
            definitions: DEFINITIONS,
            stamp: provenance::stamp(record),
        };
        let doubts = Block::List {
            items: (summary.alarms.iter().cloned())
                .map(|lead| Item {
                    lead,
                    text: String::new(),
                })
                .collect(),
        };
        let strip = Block::Strip {
            figures: strip::of(summary),
        };
        for (title, blocks) in [
            ("Answers", vec![answers::block(summary)]),
            (DOUBTS, vec![doubts]),
            ("Key figures", vec![strip]),
            ("Charts", charts.into_iter().map(Block::Chart).collect()),
            ("Figures", tables::section(summary)),
            ("Changes", changes::section(summary)),
            ("Lossy on the wire", lossy::section(summary)),
            ("Interference", interference::section(summary)),
            ("Checks", vec![Block::Table(provenance::checks(record))]),
            (
                "Failed requests",
                vec![Block::Table(provenance::failures(summary))],
            ),
            ("Projected", projected::section(record, projected)),
            ("Run", vec![Block::Table(provenance::run(record))]),
            (
                "Configuration",
                configuration::section(&record.configuration),
            ),
            ("Environment", provenance::environment(record)),
        ] {
            document.add(title, blocks);
        }
        document
    }

    /// The charts in it.
    pub(super) fn charts(&self) -> impl Iterator<Item = &Chart> {
        let blocks = self.sections.iter().flat_map(|section| &section.blocks);
        blocks.filter_map(|block| match block {
            Block::Chart(chart) => Some(chart),
            _ => None,
        })
    }

    /// Adds a section, unless it has nothing to say.
    pub(super) fn add(&mut self, title: &'static str, mut blocks: Vec<Block>) {
        blocks.retain(|block| !block.is_empty());
        if !blocks.is_empty() {
            self.sections.push(Section { title, blocks });
        }
    }
}
