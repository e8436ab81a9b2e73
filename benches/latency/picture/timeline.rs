//! Before, during and after an overload: a panel for the jobs and one for `/ping`, a curve for each variant.

use std::ops::Range;

use plotters::prelude::*;

use super::{
    Picture,
    canvas::{self, Canvas, FONT, LABELS, Label, TEXT},
};
use crate::latency::{
    BoxError,
    plan::{BUSY, OVERLOAD, Scene},
    record::Record,
    spread::number,
    timeline::{SLICE, Slice},
};

const PANEL: u32 = 470;

struct Panel {
    caption: &'static str,
    figure: fn(&Slice) -> Option<f64>,
    /// Whether slices in which jobs were refused are marked.
    marks: bool,
    note: fn(&Record) -> String,
}

const PANELS: [Panel; 2] = [
    Panel {
        caption: "jobs: the slowest of each 100 ms; dots: some were refused",
        figure: |slice| slice.job_max_ms,
        marks: true,
        note: |record| {
            let watched = record.watched_seconds().unwrap_or_default();
            match record.recovery_ms {
                Some(milliseconds) => format!("normal: {} ms", number(milliseconds)),
                None if record.runs.iter().any(|run| run.recovery_known) => format!("not in {watched:.1} s"),
                None => "unknown".to_owned(),
            }
        },
    },
    Panel {
        caption: "/ping: the slowest of each 100 ms",
        figure: |slice| slice.ping_max_ms,
        marks: false,
        note: |record| format!("p99 {} ms", number(record.ping_p99_ms)),
    },
];

pub(super) fn draw(records: &[Record]) -> Result<Option<Picture>, BoxError> {
    let records: Vec<&Record> =
        records.iter().filter(|record| record.scene == Scene::Recovery && !record.timeline.is_empty()).collect();
    if records.is_empty() {
        return Ok(None);
    }
    let title = format!("{BUSY} % of capacity, {OVERLOAD} % (grey), {BUSY} % again");
    let heights =
        canvas::heights(records.iter().flat_map(|record| {
            record.timeline.iter().flat_map(|slice| [slice.job_max_ms, slice.ping_max_ms]).flatten()
        }));
    let svg = canvas::picture(PANEL * 2, &title, |plots| {
        for (area, panel) in plots.split_evenly((PANELS.len(), 1)).iter().zip(&PANELS) {
            draw_panel(area, panel, &records, heights.clone())?;
        }
        Ok(())
    })?;
    let caption = format!("{title}: the slowest job and the slowest /ping of each tenth of a second.");
    Ok(Some(Picture { name: "latency-recovery.svg", caption, svg }))
}

fn draw_panel(area: &Canvas<'_>, panel: &Panel, records: &[&Record], heights: Range<f64>) -> Result<(), BoxError> {
    let seconds = records.iter().map(|record| seconds_of(record.timeline.len())).fold(0.0, f64::max);
    let powers = canvas::powers_of_ten(&heights);
    let mut chart = ChartBuilder::on(area)
        .caption(panel.caption, (FONT, 25))
        .margin_left(14)
        .margin_right(LABELS)
        .margin_bottom(10)
        .x_label_area_size(62)
        .y_label_area_size(86)
        .build_cartesian_2d(0.0..seconds, heights.clone().log_scale().with_key_points(powers))?;
    if let Some(overload) = records.iter().find_map(|record| record.overload) {
        let corners = [(overload.begin_s, heights.start), (overload.end_s, heights.end)];
        chart.draw_series([Rectangle::new(corners, BLACK.mix(0.08).filled())])?;
    }
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.18))
        .x_labels(9)
        .x_label_style((FONT, TEXT))
        .y_label_formatter(&|milliseconds| milliseconds.to_string())
        .y_label_style((FONT, TEXT))
        .x_desc("s")
        .y_desc("ms, log scale")
        .axis_desc_style((FONT, TEXT))
        .draw()?;

    let mut labels = Vec::new();
    for record in records {
        let colour = canvas::colour(record);
        let points = |marked: bool| {
            let slices = record.timeline.iter().enumerate();
            slices
                .filter(move |(_, slice)| !marked || slice.jobs_refused > 0)
                .filter_map(|(place, slice)| Some((seconds_of(place), canvas::on_scale((panel.figure)(slice)?))))
                .collect::<Vec<_>>()
        };
        let Some(last) = points(false).last().copied() else { continue };
        chart.draw_series(LineSeries::new(points(false), colour.stroke_width(2)))?;
        if panel.marks {
            chart.draw_series(points(true).into_iter().map(|point| Circle::new(point, 3, colour.filled())))?;
        }
        // Where the plot ends, though the last slice begins before.
        let end = chart.backend_coord(&(seconds, last.1));
        labels.push(Label { end, colour, name: record.variant.clone(), note: (panel.note)(record) });
    }
    let (_, top) = area.get_base_pixel();
    let plot = chart.plotting_area().get_pixel_range().1;
    canvas::draw_labels(area, labels, plot.start - top..plot.end - top)
}

fn seconds_of(slices: usize) -> f64 {
    SLICE.as_secs_f64() * slices as f64
}
