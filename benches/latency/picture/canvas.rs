//! What all pictures have in common.

use std::ops::Range;

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::latency::{BoxError, record::Record, variants};

pub(super) type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(super) const WIDTH: u32 = 1120;
pub(super) const HEADING: u32 = 56;
/// Right of each plot, for the names of its curves.
pub(super) const LABELS: u32 = 450;
pub(super) const FONT: &str = "sans-serif";
pub(super) const TEXT: u32 = 21;
const LINE_HEIGHT: i32 = 25;
const GREY: RGBColor = RGBColor(90, 90, 90);

/// What stands right of a curve.
#[derive(Debug, Clone)]
pub(super) struct Label {
    /// Where the curve ends, in the pixels of the whole picture.
    pub(super) end: (i32, i32),
    pub(super) colour: RGBColor,
    pub(super) name: String,
    pub(super) note: String,
}

/// Makes a picture of a heading and of what `plot` draws under it.
pub(super) fn picture(
    height: u32,
    title: &str,
    plot: impl FnOnce(&Canvas<'_>) -> Result<(), BoxError>,
) -> Result<String, BoxError> {
    let mut svg = String::new();
    {
        let canvas = SVGBackend::with_string(&mut svg, (WIDTH, height + HEADING)).into_drawing_area();
        canvas.fill(&WHITE)?;
        canvas.draw(&Text::new(title, (24, 18), (FONT, 28).into_font()))?;
        let (_, plots) = canvas.split_vertically(HEADING);
        plot(&plots)?;
        canvas.present()?;
    }
    Ok(svg)
}

/// Names each curve beside its end, moved apart where the ends are close. `heights` are those of the plot in `panel`.
pub(super) fn draw_labels(panel: &Canvas<'_>, mut labels: Vec<Label>, heights: Range<i32>) -> Result<(), BoxError> {
    labels.sort_by_key(|label| label.end.1);
    let (left, top) = panel.get_base_pixel();
    let wanted: Vec<i32> = labels.iter().map(|label| label.end.1 - top).collect();
    for (label, place) in labels.iter().zip(apart(&wanted, LINE_HEIGHT, heights)) {
        let (x, y) = (label.end.0 - left, label.end.1 - top);
        let leader = vec![(x + 3, y), (x + 22, place), (x + 40, place)];
        panel.draw(&PathElement::new(leader, label.colour.stroke_width(2)))?;
        let style = TextStyle::from((FONT, TEXT).into_font()).pos(Pos::new(HPos::Left, VPos::Center));
        panel.draw(&Text::new(label.name.as_str(), (x + 46, place), style.color(&BLACK)))?;
        let right = i32::try_from(LABELS)? + x - 10;
        let style = style.pos(Pos::new(HPos::Right, VPos::Center));
        panel.draw(&Text::new(label.note.as_str(), (right, place), style.color(&GREY)))?;
    }
    Ok(())
}

/// Places in ascending order, each as near to where it is wanted as the others and the bounds allow.
fn apart(wanted: &[i32], distance: i32, bounds: Range<i32>) -> Vec<i32> {
    let mut places = Vec::with_capacity(wanted.len());
    let mut lowest = bounds.start;
    for place in wanted {
        let place = lowest.max(*place);
        places.push(place);
        lowest = place + distance;
    }
    let mut highest = bounds.end;
    for place in places.iter_mut().rev() {
        *place = highest.min(*place);
        highest = *place - distance;
    }
    places
}

/// From just under the lowest to just over the highest of them, for a logarithmic scale.
pub(super) fn heights(milliseconds: impl Iterator<Item = f64>) -> Range<f64> {
    let (lowest, highest) = milliseconds
        .map(on_scale)
        .fold((f64::INFINITY, 0.0_f64), |(lowest, highest), it| (lowest.min(it), highest.max(it)));
    if lowest > highest { 0.1..1000.0 } else { lowest * 0.8..highest * 1.5 }
}

/// A logarithmic scale has no 0: what is quicker than a microsecond is drawn as one.
pub(super) fn on_scale(milliseconds: f64) -> f64 {
    milliseconds.max(1e-3)
}

pub(super) fn powers_of_ten(heights: &Range<f64>) -> Vec<f64> {
    (-3..7).map(|power| 10_f64.powi(power)).filter(|it| heights.contains(it)).collect()
}

/// Grey for who is not known any more, or not yet: the records may be of another version.
pub(super) fn colour(record: &Record) -> RGBColor {
    let [red, green, blue] = variants::named(&record.variant).map_or([150, 150, 150], |variant| variant.colour);
    RGBColor(red, green, blue)
}

/// As the tables mark what is in doubt.
pub(super) fn doubt(record: &Record) -> &'static str {
    if record.is_reliable() { "" } else { " !" }
}
