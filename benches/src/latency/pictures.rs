//! The rows as SVG pictures.

use std::ops::Range;

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    BUSY_PCT, JOB, OVERLOAD_PCT, PING_RATE, Row, SLEEPING_JOB, Sample, Scene, Slice, is_reliable,
    sample::{LAST_POSITION, SLICE_MS, positions},
    server::VARIANTS,
};
use crate::{
    BoxError, Picture, Spread, number,
    picture::{FONT, GREY, TITLE_HEIGHT, WIDTH},
};

const PANEL_HEIGHT: u32 = 470;
/// The space to the right of each plot. It holds the names of the curves.
const LABEL_WIDTH: i32 = 450;
const LABEL_HEIGHT: i32 = 25;

/// One plot of a picture. Its vertical axis is the latency in milliseconds, on a logarithmic scale.
struct Panel {
    caption: String,
    x: Range<i32>,
    x_name: &'static str,
    /// The marks of the horizontal axis.
    ticks: Vec<(i32, String)>,
    /// The part of the horizontal axis that is grey.
    shaded: Option<Range<i32>>,
    curves: Vec<Curve>,
}

struct Curve {
    variant: String,
    /// Text after the name of the variant in its label.
    note: String,
    points: Vec<(i32, f64)>,
    /// Points that are marked with a dot.
    dots: Vec<(i32, f64)>,
}

/// Returns all pictures for which there are rows.
pub fn all(rows: &[Row]) -> Result<Vec<Picture>, BoxError> {
    let pictures = Scene::ALL.into_iter().map(|scene| of(scene, rows)).collect::<Result<Vec<_>, _>>()?;
    Ok(pictures.concat())
}

/// Returns the pictures that belong to a scene.
pub fn of(scene: Scene, rows: &[Row]) -> Result<Vec<Picture>, BoxError> {
    let has_cpu = rows.iter().any(|row| row.scene.scene == Scene::Cpu);
    let pictures = match scene {
        // The percentiles of sleeping jobs are in the same picture.
        Scene::Cpu => [by_load(rows)?, if has_cpu { by_percentile(rows)? } else { None }],
        Scene::Sleeping => [None, if has_cpu { None } else { by_percentile(rows)? }],
        Scene::Recovery => [None, recovery(rows)?],
        Scene::Quota | Scene::Target => [None, None],
    };
    Ok(pictures.into_iter().flatten().collect())
}

/// Draws the p99 of `/ping` against the load.
fn by_load(rows: &[Row]) -> Result<Option<Picture>, BoxError> {
    let mut rows: Vec<(i32, &Row)> = rows
        .iter()
        .filter(|row| row.scene.scene == Scene::Cpu)
        .filter_map(|row| Some((i32::try_from(row.scene.load_pct?).ok()?, row)))
        .collect();
    rows.sort_by_key(|(load, _)| *load);
    let (Some((lowest, _)), Some((highest, _))) = (rows.first().copied(), rows.last().copied()) else {
        return Ok(None);
    };
    let mut ticks: Vec<_> = rows.iter().map(|(load, _)| (*load, format!("{load} %"))).collect();
    ticks.dedup();
    let mut curves: Vec<Curve> = Vec::new();
    for (load, row) in &rows {
        let point = (*load, median(row, |it| it.ping_p99_ms));
        let note = format!("{} ms at {load} %{}", number(point.1), mark(row));
        match curves.iter_mut().find(|curve| curve.variant == row.variant) {
            Some(curve) => {
                curve.points.push(point);
                curve.note = note;
            }
            None => curves.push(Curve { note, ..curve(row, String::new(), vec![point]) }),
        }
    }
    curves.iter_mut().for_each(|curve| curve.dots.clone_from(&curve.points));
    let title = format!("p99 of /ping beside {} ms CPU jobs", JOB.as_millis());
    let panel = Panel {
        caption: String::new(),
        // Leaves room to the left of the first points. The labels are to the right of the last
        // ones.
        x: lowest - 10..highest.max(lowest + 1),
        x_name: "jobs offered, of capacity",
        ticks,
        shaded: None,
        curves,
    };
    let caption = format!("{title}, against the jobs offered in percent of the capacity; logarithmic.");
    picture("latency.svg", &title, caption, &[panel])
}

/// Draws the slowest job and ping of each slice, before, during and after an overload.
fn recovery(rows: &[Row]) -> Result<Option<Picture>, BoxError> {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.scene.scene == Scene::Recovery).collect();
    let Some(setting) = rows.first().map(|row| &row.scene) else { return Ok(None) };
    let milliseconds = |milliseconds: u64| i32::try_from(milliseconds).unwrap_or(i32::MAX);
    let end = milliseconds(setting.phases.measure_ms);
    let panel = |caption: &str, curves| Panel {
        caption: caption.to_owned(),
        x: 0..end,
        x_name: "s",
        ticks: (0..=end / 1000).step_by(if end > 8000 { 2 } else { 1 }).map(|it| (1000 * it, it.to_string())).collect(),
        shaded: setting.overload.map(|it| milliseconds(it.after_ms)..milliseconds(it.after_ms + it.length_ms)),
        curves,
    };
    let points = |row: &Row, figure: fn(&Slice) -> Option<f64>| {
        let slices = row.rounds.iter().map(|round| round.sample.timeline.len()).min().unwrap_or(0);
        let median = |index: usize| Spread::of(row.rounds.iter().filter_map(|it| figure(&it.sample.timeline[index])));
        let point = |index: usize| Some((milliseconds(SLICE_MS * index as u64), median(index)?.median));
        (0..slices).filter_map(point).collect::<Vec<_>>()
    };
    let jobs = rows.iter().map(|row| {
        let note = match row.spread(Sample::recovery_or_never_ms) {
            Some(spread) if spread.median.is_finite() => format!("normal: {} ms", number(spread.median)),
            Some(_) => format!("not in {:.1} s", setting.observed_after_overload_ms().unwrap_or(0) as f64 / 1e3),
            None => "unknown".to_owned(),
        };
        let curve = curve(row, note, points(row, |slice| slice.job_max_ms));
        Curve { dots: points(row, |slice| slice.job_max_ms.filter(|_| slice.jobs_refused > 0)), ..curve }
    });
    let pings = rows.iter().map(|row| {
        let note = format!("p99 {} ms", number(median(row, |it| it.ping_p99_ms)));
        curve(row, note, points(row, |slice| slice.ping_max_ms))
    });
    let panels = [
        panel("jobs: the slowest of each 100 ms; dots: some were refused", jobs.collect()),
        panel("/ping: the slowest of each 100 ms", pings.collect()),
    ];
    let title = format!("{BUSY_PCT} % of capacity, {OVERLOAD_PCT} % (grey), {BUSY_PCT} % again");
    let caption = format!("{title}: the slowest job and the slowest /ping of each tenth of a second.");
    picture("latency-recovery.svg", &title, caption, &panels)
}

/// Draws the latency of `/ping` by percentile, with a panel for each load.
fn by_percentile(rows: &[Row]) -> Result<Option<Picture>, BoxError> {
    let mut rows: Vec<&Row> =
        rows.iter().filter(|row| matches!(row.scene.scene, Scene::Cpu | Scene::Sleeping)).collect();
    let panel_of = |row: &&Row| (row.scene.scene == Scene::Sleeping, row.scene.load_pct);
    rows.sort_by_key(panel_of);
    let panels = rows.chunk_by(|a, b| panel_of(a) == panel_of(b)).map(|rows| Panel {
        caption: match rows[0].scene.load_pct {
            Some(load) => format!("jobs that compute, at {load} % of capacity"),
            None => format!("jobs that sleep {} ms", SLEEPING_JOB.as_millis()),
        },
        x: 0..LAST_POSITION,
        x_name: "percentile of the requests",
        ticks: [(301, "50 %"), (1000, "90 %"), (2000, "99 %"), (LAST_POSITION, "99.9 %")]
            .map(|(position, name)| (position, name.to_owned()))
            .to_vec(),
        shaded: None,
        curves: rows
            .iter()
            .map(|row| {
                let latency = |index: usize| median(row, |it| it.ping_percentiles_ms[index]);
                let points = positions().enumerate().map(|(index, position)| (position, latency(index)));
                let note = format!("p99 {} ms{}", number(median(row, |it| it.ping_p99_ms)), mark(row));
                curve(row, note, points.collect())
            })
            .collect(),
    });
    let title = format!("Latency of /ping, {PING_RATE:.0} per second, by percentile");
    let caption = format!("{title}: for each load the median of the rounds, from the fastest requests to 99.9 %.");
    picture("latency-percentiles.svg", &title, caption, &panels.collect::<Vec<_>>())
}

fn curve(row: &Row, note: String, points: Vec<(i32, f64)>) -> Curve {
    Curve { variant: row.variant.clone(), note, points, dots: Vec::new() }
}

fn median(row: &Row, figure: impl Fn(&Sample) -> f64) -> f64 {
    row.spread(figure).map_or(f64::NAN, |spread| spread.median)
}

fn mark(row: &Row) -> &'static str {
    if is_reliable(row) { "" } else { " !" }
}

/// Draws the panels under each other. All have the same vertical axis, so that they can be
/// compared.
fn picture(name: &'static str, title: &str, caption: String, panels: &[Panel]) -> Result<Option<Picture>, BoxError> {
    if panels.is_empty() {
        return Ok(None);
    }
    let latencies =
        panels.iter().flat_map(|panel| &panel.curves).flat_map(|curve| &curve.points).map(|it| on_scale(it.1));
    let (lowest, highest) =
        latencies.fold((f64::INFINITY, 0.0_f64), |(lowest, highest), it| (lowest.min(it), highest.max(it)));
    let heights = if lowest > highest { 0.1..1000.0 } else { lowest * 0.8..highest * 1.5 };
    let mut svg = String::new();
    {
        let height = PANEL_HEIGHT * u32::try_from(panels.len())?;
        let canvas = SVGBackend::with_string(&mut svg, (WIDTH, height + TITLE_HEIGHT)).into_drawing_area();
        canvas.fill(&WHITE)?;
        canvas.draw(&Text::new(title, (24, 18), (FONT.0, 28).into_font()))?;
        let (_, plots) = canvas.split_vertically(TITLE_HEIGHT);
        for (area, panel) in plots.split_evenly((panels.len(), 1)).iter().zip(panels) {
            draw(area, panel, heights.clone())?;
        }
        canvas.present()?;
    }
    Ok(Some(Picture { name, caption, svg }))
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    panel: &Panel,
    heights: Range<f64>,
) -> Result<(), BoxError> {
    let powers = (-3..7).map(|power| 10_f64.powi(power)).filter(|it| heights.contains(it)).collect();
    let ticks = panel.ticks.iter().map(|(x, _)| *x).collect();
    let mut builder = ChartBuilder::on(area);
    if !panel.caption.is_empty() {
        builder.caption(&panel.caption, (FONT.0, 25));
    }
    let mut chart = builder
        .margin_top(8)
        .margin_left(14)
        .margin_right(LABEL_WIDTH)
        .margin_bottom(10)
        .x_label_area_size(62)
        .y_label_area_size(86)
        .build_cartesian_2d(
            panel.x.clone().with_key_points(ticks),
            heights.clone().log_scale().with_key_points(powers),
        )?;
    if let Some(shaded) = &panel.shaded {
        let corners = [(shaded.start, heights.start), (shaded.end, heights.end)];
        chart.draw_series([Rectangle::new(corners, BLACK.mix(0.08).filled())])?;
    }
    let name_of = |x: &i32| {
        let tick = panel.ticks.iter().find(|(tick, _)| tick == x);
        tick.map_or_else(String::new, |(_, name)| name.clone())
    };
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.18))
        .x_labels(panel.ticks.len())
        .x_label_formatter(&name_of)
        .x_label_style(FONT)
        .y_label_formatter(&|milliseconds| milliseconds.to_string())
        .y_label_style(FONT)
        .x_desc(panel.x_name)
        .y_desc("ms, log scale")
        .axis_desc_style(FONT)
        .draw()?;
    let mut labels = Vec::new();
    for curve in &panel.curves {
        let colour = VARIANTS.iter().find(|variant| variant.name == curve.variant).map(|variant| variant.colour);
        // Rows from a file may have variants that are unknown here.
        let [red, green, blue] = colour.unwrap_or([150, 150, 150]);
        let colour = RGBColor(red, green, blue);
        let scaled = |points: &[(i32, f64)]| points.iter().map(|(x, y)| (*x, on_scale(*y))).collect::<Vec<_>>();
        let Some((_, last)) = curve.points.last() else { continue };
        chart.draw_series(LineSeries::new(scaled(&curve.points), colour.stroke_width(3)))?;
        chart.draw_series(scaled(&curve.dots).into_iter().map(|point| Circle::new(point, 4, colour.filled())))?;
        // Labels are at the end of the plot, even if the curve ends earlier.
        labels.push((chart.backend_coord(&(panel.x.end, on_scale(*last))), colour, curve));
    }
    labels.sort_by_key(|((_, y), ..)| *y);
    let (left, top) = area.get_base_pixel();
    let bounds = chart.plotting_area().get_pixel_range().1;
    let heights = spread_labels(labels.iter().map(|((_, y), ..)| *y - top), bounds.start - top..bounds.end - top);
    for (((x, y), colour, curve), height) in labels.into_iter().zip(heights) {
        let (x, y) = (x - left, y - top);
        let leader = vec![(x + 3, y), (x + 22, height), (x + 40, height)];
        area.draw(&PathElement::new(leader, colour.stroke_width(2)))?;
        let style = TextStyle::from(FONT.into_font()).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(curve.variant.as_str(), (x + 46, height), style.color(&BLACK)))?;
        let style = style.pos(Pos::new(HPos::Right, VPos::Center));
        area.draw(&Text::new(curve.note.as_str(), (x + LABEL_WIDTH - 10, height), style.color(&GREY)))?;
    }
    Ok(())
}

/// Returns ascending heights, each as close to the wanted one as the other labels and the bounds
/// permit.
fn spread_labels(wanted: impl Iterator<Item = i32>, bounds: Range<i32>) -> Vec<i32> {
    let mut lowest = bounds.start;
    let mut heights: Vec<i32> = wanted
        .map(|wanted| {
            let height = lowest.max(wanted);
            lowest = height + LABEL_HEIGHT;
            height
        })
        .collect();
    let mut highest = bounds.end;
    for height in heights.iter_mut().rev() {
        *height = highest.min(*height);
        highest = *height - LABEL_HEIGHT;
    }
    heights
}

/// Clamps a latency to at least a microsecond, because a logarithmic scale has no 0.
fn on_scale(milliseconds: f64) -> f64 {
    milliseconds.max(1e-3)
}
