//! Realistic names of people in many scripts: short and long, with marks, spaces and right-to-left.

use domain::User;
use uuid::Uuid;

/// Given names, family names and the separator between them, one row per script or language.
const PEOPLE: [(&[&str], &[&str], &str); 20] = [
    (&["Olivia", "James", "Charlotte", "Theo"], &["Smith", "O’Connor", "Ramsbottom-Hughes", "Li"], " "),
    (&["María José", "Íñigo", "Xiomara", "José"], &["García Márquez", "Núñez", "de la Fuente y Ortega"], " "),
    (&["Zoë", "François", "Anaïs", "Jean-Baptiste"], &["Lefèvre", "d’Aubigné", "Chateaubriand"], " "),
    (&["Jürgen", "Käthe", "Björn", "Åsa"], &["Müller", "Groß", "Öström", "von Wolkenstein-Rodenegg"], " "),
    (&["Łukasz", "Żaneta", "Ondřej", "Đorđe"], &["Wójcik", "Brzęczyszczykiewicz", "Dvořák", "Šarić"], " "),
    (&["Nguyễn Thị", "Trần Văn", "Lê"], &["Hương", "Đức", "Quỳnh Anh"], " "),
    (&["Jón", "Guðrún", "Þóra"], &["Þorsteinsson", "Eyjafjallajökulsdóttir", "Sigurðardóttir"], " "),
    (&["Анна", "Дмитрий", "Владислав"], &["Иванова", "Достоевский", "Рождественский"], " "),
    (&["Олена", "Їжак", "Ґеорґій"], &["Шевченко", "Ковальчук", "Підопригора"], " "),
    (&["Ελένη", "Γιώργος", "Κωνσταντίνος"], &["Παπαδοπούλου", "Νικολάου", "Παπακωνσταντίνου"], " "),
    (&["محمد", "فاطمة", "عبد الرحمن"], &["الخوارزمي", "بن سلمان", "النجار"], " "),
    (&["יעל", "אברהם", "שרה"], &["כהן", "בן־גוריון", "לוי"], " "),
    (&["अनन्या", "राजेश", "प्रियंका"], &["शर्मा", "चट्टोपाध्याय", "सिंह"], " "),
    (&["தமிழ்செல்வி", "முத்துக்குமார்"], &["சுப்பிரமணியன்", "இராமநாதன்"], " "),
    (&["สมชาย", "ณัฐวุฒิ"], &["ศรีสวัสดิ์", "วงศ์สุวรรณ"], " "),
    (&["ნინო", "გიორგი"], &["ჯავახიშვილი", "ბერიძე"], " "),
    (&["Արամ", "Անահիտ"], &["Խաչատրյան", "Տեր-Պետրոսյան"], " "),
    (&["王", "欧阳", "𠮷"], &["芳", "娜娜", "建国"], ""),
    (&["さくら", "ヴィクトリア", "太郎"], &["山田", "勅使河原", "東海林"], " "),
    (&["김", "남궁", "선우"], &["서연", "민준", "빛나"], ""),
];

/// The `n`th user of a burst, with a new id.
#[must_use]
pub fn user(n: usize) -> User {
    let (given, family, between) = PEOPLE[n % PEOPLE.len()];
    let turn = n / PEOPLE.len();
    let name = format!("{}{between}{}", given[turn % given.len()], family[turn / given.len() % family.len()]);
    User { id: Uuid::new_v4(), name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_that_ingest_takes() {
        for n in 0..1_000 {
            let user = user(n);
            assert_eq!(User::from_json(&user.to_json()).unwrap(), user);
        }
    }

    #[test]
    fn names_differ_in_script_and_length() {
        let lengths: std::collections::BTreeSet<_> = (0..300).map(|n| user(n).name.chars().count()).collect();
        assert!(lengths.len() > 15, "{lengths:?}");
    }
}
